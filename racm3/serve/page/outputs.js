// Outputs: a request is sent, what comes is shown while it comes, kept, and can be compared, repeated and saved.
"use strict";

// An output is { kind, title, at, request, answer, given, control, thumbs, others }. `request` has all settings and the
// seed; `given` and `control` are the pictures given, `thumbs` those of the sources, which may be deleted later; `others`
// what the same request gave otherwise, by name.

const kinds = {}; // by tab: { again(request), restore(request) }

/** What was generated, of the answers of all tasks in one shape. */
function read(answer) {
  const one = answer.data?.[0] ?? answer.choices?.[0] ?? answer;
  const words = one.parts?.filter((part) => part.type === "text").map((part) => part.text).join("\n") ?? null;
  return {
    picture: one.b64_json ?? null, words, attribution: [one.attribution].flat()[0] ?? null,
    sources: answer.sources, racm3: answer.racm3,
  };
}

/** Sends a request, shows what comes as it comes, and keeps the output. */
async function complete(kind, request, { title, given = null }, signal, progress) {
  const stage = stages[kind], draws = request.path.startsWith("/v1/images");
  const control = Array.isArray(request.body.image) ? request.body.image[1] : null;
  const stream = !(request.body.racm3.samples > 1); // which one is best shows at the end
  let coming = null, words = "", rows = 0;
  progress(null);
  try {
    const response = await send(withSettings(request, { attribution: true }, stream && { stream }), signal);
    let answer = null;
    if (!stream) answer = read(await response.json());
    else for await (const event of events(response)) {
      if (event.ahead !== undefined) { progress(null, event.ahead ? `${event.ahead} ahead in the queue` : "Next in the queue"); continue; }
      if (event.error) throw new Error(event.error.message);
      if (event.sources) { answer = read(event); continue; } // the last one tells all
      coming ??= stage.begin(title, given);
      if (draws) {
        progress(Math.min(++rows / (request.rows ?? server.grid[0]), 1));
        coming({ picture: event.b64_json });
      } else {
        progress(null, "");
        coming({ words: words += event.choices?.[0]?.delta.content ?? "" });
      }
    }
    if (answer === null) throw brokenOff();
    if (request.soft) answer.picture = await blended(given, answer.picture, request.soft);
    const same = { ...request, body: { ...request.body, racm3: Object.fromEntries(scalars(answer.racm3)) } };
    const thumbs = await Promise.all(answer.sources.map((source) => control?.url ?? thumbOf(source)));
    await stage.add(await kept.put({ kind, title, at: Date.now(), request: same, answer, given, control, thumbs, others: {} }));
  } catch (error) {
    stage.show(stage.record);
    throw error;
  }
}

/** The picture of a source as a URL; null if there is none, or no longer. */
async function thumbOf({ image, id }) {
  if (!image) return null;
  return fetchPicture(image, id).then((picture) => picture.atMost(MOST_PX / 4)).then((picture) => picture.url, () => null);
}

/** Where outputs of a kind are shown: the newest or a chosen one large, the earlier ones in a row below. */
class Stage {
  constructor(kind) {
    const panel = $(`#${kind}`);
    Object.assign(this, { kind, cards: [], record: null, node: $(".stage", panel), earlier: $(".earlier", panel) });
  }

  /** Begins an output; returns what shows a part of it: { picture } or { words }. */
  begin(title, given) {
    const figure = el("figure", { class: "made" });
    this.node.replaceChildren(el("article", { class: "card output", "aria-label": title, "aria-busy": "true" },
      el("h2", {}, title), el("div", { class: "row" }, givenFigure(given), figure)));
    return ({ picture, words }) => {
      const src = `data:image/png;base64,${picture}`, img = $("img", figure);
      if (words !== undefined) figure.replaceChildren(el("p", { class: "words" }, words));
      else if (img) img.src = src; // in the same <img>, so that nothing flickers from row to row
      else figure.replaceChildren(el("div", { class: "frame" }, el("img", { src, alt: title })));
    };
  }

  async add(record) {
    this.cards.unshift({ ...cardOf(record), id: record.id });
    await this.show(record);
  }

  async show(record) {
    this.record = record;
    this.node.replaceChildren(...(record ? [await outputNode(record)] : []));
    const STRIP = 24;
    $("ol", this.earlier).replaceChildren(...this.cards.slice(0, STRIP).map((card) => el("li", {},
      cardButton(card, () => this.choose(card.id), { "aria-current": card.id === record?.id }))));
    this.earlier.hidden = this.cards.length < 2;
  }

  async choose(id) {
    await this.show(await kept.get(id));
    this.node.scrollIntoView({ block: "nearest" });
  }

  /** Shows what was kept. */
  async fill(cards) {
    this.cards = cards.filter((card) => card.kind === this.kind);
    if (this.cards.length) await this.show(await kept.get(this.cards[0].id));
  }

  async drop(id) {
    this.cards = this.cards.filter((card) => card.id !== id);
    await this.show(this.record?.id === id ? (this.cards.length ? await kept.get(this.cards[0].id) : null) : this.record);
  }
}

const stages = Object.fromEntries(["draw", "describe", "edit", "teach"].map((kind) => [kind, new Stage(kind)]));

/** A small picture of an output, to choose it. */
const cardButton = ({ picture, words, title, at }, onclick, more = {}) => el("button", {
  type: "button", class: "small-output", onclick, title: `${title} · ${new Date(at).toLocaleString("en")}`, ...more,
}, picture ? el("img", { src: picture, alt: "" }) : null, el("span", { class: words ? null : "unseen" }, words ?? title));

const givenFigure = (given) => given && el("figure", { class: "given" },
  enlarging(el("img", { src: given.url, alt: `given: ${given.name}` }), "the picture given"), el("figcaption", {}, "given"));

const pngUrl = (base64) => `data:image/png;base64,${base64}`;


// One output --------------------------------------------------------------------------------------------------------

const outputNode = async (record) => (record.kind === "teach" ? taughtNode(record) : new Output(record).open());

class Output {
  constructor(record) {
    const { title, answer, given } = record;
    Object.assign(this, { record, answer, name: fileName(title, "png") });
    this.figure = el("figure", { class: "made" });
    this.alert = el("p", { role: "alert" });
    this.node = el("article", { class: "card output", "aria-label": title });
    this.before = answer.picture === null ? givenFigure(given) : null; // of an edit, the comparison shows it
  }

  async open() {
    const { record, answer } = this;
    this.panels = await overlayPanels(answer, record.thumbs);
    this.show();
    const when = record.example ? `an example, drawn earlier by ${record.example}` : new Date(record.at).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });
    this.node.append(
      el("header", {}, el("h2", {}, record.title), el("p", { class: "quiet" }, `seed ${answer.racm3.seed} · ${when}`)),
      el("div", { class: "row" }, this.before, this.figure),
      el("div", { class: "tools" }, ...this.views()), el("div", { class: "tools" }, ...this.actions()), this.alert,
      ...this.sources(), this.details());
    return this.node;
  }

  get picture() { return Picture.fromBase64(this.answer.picture, this.name); }

  get request() { return this.record.request; }

  /** Puts what came into the figure, beside what came otherwise if that is asked for. */
  show(other = null, words = "") {
    const { picture, attribution } = this.answer;
    const told = this.answer.sources.length ? `from ${counted(this.answer.sources.length, "source")}` : "without sources";
    if (picture === null) {
      const frame = el("p", { class: "words" }, ...(markedWords(attribution) ?? [this.answer.words]));
      this.figure.replaceChildren(frame, el("figcaption", {}, told),
        ...(other ? [el("p", { class: "words" }, other.words), el("figcaption", {}, words)] : []));
      return;
    }
    const img = el("img", { src: pngUrl(picture), alt: this.record.title });
    if (!other) {
      const frame = el("div", { class: "frame" }, enlarging(img, "the picture"), this.panels?.[0] ?? null);
      return this.figure.replaceChildren(frame, el("figcaption", {}, told));
    }
    const frame = el("div", { class: "frame compare" }, img, el("img", { class: "other", src: other.url ?? pngUrl(other.picture), alt: words }));
    const slider = el("input", {
      type: "range", min: 0, max: 100, value: 50, "aria-label": `Compare: to the left ${told}, to the right ${words}`,
      oninput() { frame.style.setProperty("--at", `${slider.value}%`); },
    });
    frame.append(slider);
    this.figure.replaceChildren(frame, el("figcaption", { class: "ends" }, el("span", {}, told), el("span", {}, words)));
  }

  /** What can be looked at: comparisons, and what came from where. */
  views() {
    const { answer, record } = this;
    const choices = [["Alone", () => this.show()]];
    if (answer.racm3.retrieve && answer.sources.length) choices.push(["Without sources", () => this.compare()]);
    if (answer.picture && record.given) choices.push(["Before", () => this.show(record.given, "before")]);
    const group = `compare-${record.id ?? "example"}`;
    const segments = choices.length < 2 ? null : el("span", { class: "segments", role: "radiogroup", "aria-label": "Compare" },
      ...choices.map(([word, onchange], i) => el("label", {}, el("input", { type: "radio", name: group, checked: i === 0, onchange }), word)));
    const marked = answer.attribution && answer.sources.length ? el("label", { class: "switch" },
      el("input", { type: "checkbox", role: "switch", onchange: (event) => this.node.classList.toggle("marked", event.target.checked) }),
      "What came from where") : null;
    return [segments, marked];
  }

  /** What can be done with it. */
  actions() {
    const { record, request } = this;
    const again = button("Again", () => kinds[record.kind].again(withSettings(request, { seed: newSeed() })), { title: "The same request with another seed" });
    const same = button("Same settings", () => kinds[record.kind].restore(request), { title: "Put this request back into the form, seed and all" });
    if (!this.answer.picture) return [again, same, button("Copy words", () => copy(this.answer.words))];
    return [again, same, useButton(() => this.picture, "this picture"),
      button("Save", async () => saveAs(await savedPng(record), this.name), { title: "As PNG, which carries this request" }),
      record.kind === "draw" ? button("Copy link", async () => { await copy(linkOf(request)); notice("Copied a link to this request."); }) : null];
  }

  /** The same request with neither memory nor pictures given by hand. */
  async compare() {
    const { record, request } = this, { image } = request.body;
    this.alert.textContent = "";
    try {
      if (!record.others.vanilla) {
        const asked = withSettings(request, { retrieve: false }, Array.isArray(image) && { image: image[0] });
        const { picture, words } = read(await (await send(asked)).json());
        record.others.vanilla = { picture: picture && request.soft ? await blended(record.given, picture, request.soft) : picture, words };
        if (record.id) await kept.put(record);
      }
      this.show(record.others.vanilla, "without sources");
    } catch (error) {
      this.alert.textContent = error.message;
    }
  }

  sources() {
    const { record, answer } = this;
    if (!answer.sources.length) return [];
    return [
      el("ol", { class: "sources", "aria-label": "Sources" }, ...answer.sources.map((source, i) => this.source(source, i))),
      answer.attribution ? el("details", {}, el("summary", {}, "What “drew 41 % on this” means"), el("p", { class: "hint" },
        "Each piece of the output was weighed once with a source and once without it. The share says how much of all that "
        + "the sources made more likely is this one’s. The shares of all sources add up to 100 %: they say which source "
        + "was used more, not how much of the picture was copied. “What came from where” lays the same onto the picture.")) : null,
    ];
  }

  source(source, i) {
    const { record, answer } = this;
    const share = answer.attribution?.shares?.[i], given = record.control, thumb = record.thumbs[i];
    const words = source.caption ?? source.id;
    return el("li", { class: "source", style: `--tint: var(--source-${i % 4})` },
      thumb ? el("div", { class: "frame" }, enlarging(el("img", { src: thumb, alt: given ? "the picture given" : words }), `source ${i + 1}`), this.panels?.[i + 1] ?? null) : el("div"),
      el("div", {},
        el("p", {}, el("b", { class: "number" }, String(i + 1)), share === undefined ? "" : ` drew ${percent(share)} on this`),
        share === undefined ? null : el("span", { class: "share" }, el("span", { style: `width: ${100 * share}%` })),
        el("p", {}, given ? "given by hand" : source.caption ?? ""),
        thumb ? useButton(() => Picture.read(blobOf(thumb), fileName(words, "png")), `source ${i + 1}`) : null));
  }

  /** The technical lines, folded. */
  details() {
    const { answer, record, request } = this;
    const { retrieve, ...used } = answer.racm3;
    const feather = request.soft ? " · edge blended in the page" : "";
    return el("details", {}, el("summary", {}, "Details and commands"),
      el("p", { class: "quiet settings" }, scalars(used).map(([name, value]) => `${name} ${value}`).join(" · ") + feather),
      ...(record.control ? [] : answer.sources.map((source, i) =>
        el("p", { class: "quiet" }, `source ${i + 1}: ${source.id} · ${source.from} · score ${source.score.toFixed(3)}`))),
      el("div", { class: "tools" }, ...copyButtons(() => withoutOurs(request))));
  }
}

/** The settings that are the same for all that is generated, as [name, value]. */
const scalars = (settings) => Object.entries(settings).filter(([, value]) => typeof value !== "object");

/** A request as the API knows it. */
const withoutOurs = ({ path, body, multipart }) => ({ path, body, multipart });

const blobOf = (url) => new Picture("", url).blob;

/** The overlay of the API is one picture of equal panels: the output, then each source that has a picture. Each panel
 *  as an element to lay over its picture, in the order of output and sources; null where there is none. */
async function overlayPanels({ picture, attribution }, pictures) {
  if (!attribution?.overlay) return null;
  const [img, shown] = await Promise.all([attribution.overlay, picture].map((data) => Picture.fromBase64(data, "").img()));
  const count = Math.round(img.naturalWidth / img.naturalHeight);
  const frame = 100 / shown.naturalWidth; // of a panel, %: one pixel of the picture
  let next = 0;
  const panel = () => el("span", {
    class: "lit",
    style: `inset: -${frame}%; background-image: url(${img.src}); background-size: ${100 * count}% 100%; background-position: ${(100 * next++) / Math.max(count - 1, 1)}% 0`,
  });
  return [panel(), ...pictures.map((picture) => (picture ? panel() : null))];
}

/** Words in the colour of the source that each drew on most, the stronger the more it drew. */
function markedWords(attribution) {
  if (!attribution?.words) return null;
  const most = Math.max(...attribution.gains.flat(), 1e-9);
  return attribution.words.flatMap((word, i) => {
    const gains = attribution.gains[i], best = gains.indexOf(Math.max(...gains));
    const style = `--tint: var(--source-${best % 4}); --strength: ${(60 * Math.max(gains[best], 0)) / most}%`;
    const title = gains.map((gain, j) => `source ${j + 1}: ${gain >= 0 ? "+" : "−"}${Math.abs(gain).toFixed(1)} nats`).join(", ");
    return [el("mark", { style, title }, word), " "];
  });
}


// Saving and reading back -------------------------------------------------------------------------------------------

/** An output's picture as a PNG that carries its request. */
async function savedPng({ kind, title, request, answer }) {
  const png = await Picture.fromBase64(answer.picture, "").bytes();
  return new Blob([pngWithText(png, pack({ kind, title, model: server.model, request }))], { type: "image/png" });
}

/** The request that a picture carries: { kind, title, request }, or null. */
async function requestIn(picture) {
  try {
    const saved = unpack(textOfPng(await picture.bytes()));
    return saved?.request && kinds[saved.kind] ? saved : null;
  } catch {
    return null; // not ours
  }
}

function restore({ kind, request }) {
  showTab(kind);
  return kinds[kind].restore(request);
}

/** Offers the request that a picture carries, where it was given as a picture. */
async function offerRequest(picture) {
  const saved = await requestIn(picture);
  if (saved) notice(`${picture.name} carries the request that made it.`, "Use the request", () => restore(saved));
}

async function openSaved(file) {
  const saved = file.type === "image/png" ? await requestIn(await Picture.read(file, file.name)) : null;
  if (!saved) return notice(`${file.name} carries no request. To use it as a picture, drop it on a place for pictures.`);
  await restore(saved);
  notice(`The request of ${file.name} is back in the form.`);
}

/** The address that puts a request for a picture back into the form. */
function linkOf({ body: { prompt, racm3 } }) {
  const shown = Object.entries(racm3).filter(([name]) => name in SETTINGS);
  return `${location.origin}${location.pathname}#draw?${new URLSearchParams([["prompt", prompt], ...shown])}`;
}
