// Teach: labels and examples of them; which label do other pictures have?
"use strict";

const teachForm = $("#teach form");
const unlabelled = dropPlace($("#teach-pictures"));
const labels = []; // { input, examples, node, legend, remove }

function addLabel() {
  const input = el("input", { type: "text", required: true, autocomplete: "off" });
  const drop = el("div", { class: "drop", "data-words": "Examples", "data-many": true });
  const legend = el("legend", { class: "unseen" });
  const remove = button("Remove this label", () => { labels.splice(labels.indexOf(label), 1); showLabels(); labels.at(-1).input.focus(); });
  const node = el("li", {}, el("fieldset", { class: "stack" },
    legend, el("label", {}, el("span", {}, "Label"), input), drop, el("div", {}, remove)));
  const label = { input, node, legend, remove };
  labels.push(label);
  showLabels();
  label.examples = dropPlace(drop);
}

function showLabels() {
  for (const [i, { legend, remove }] of labels.entries()) {
    legend.textContent = `Label ${i + 1}`;
    remove.hidden = labels.length <= 2;
  }
  $("#teach .labels").replaceChildren(...labels.map((label) => label.node));
}

$("[name=more]", teachForm).addEventListener("click", () => { addLabel(); labels.at(-1).input.focus(); });
addLabel();
addLabel();

kinds.teach = {
  again: asks(teachForm,
    () => {
      if (!unlabelled.pictures.length) throw new Error("Give pictures to classify first.");
      const bare = labels.find(({ examples }) => !examples.pictures.length);
      if (bare) throw new Error(`Give an example of ${bare.input.value.trim()} first.`);
      const examples = Object.fromEntries(labels.map(({ input, examples }) => [input.value.trim(), examples.pictures]));
      if (Object.keys(examples).length < labels.length) throw new Error("Two labels are the same; each needs its own word.");
      return { path: "/v1/classify", body: { images: unlabelled.pictures, examples } };
    },
    async (request, signal, progress) => {
      progress(null);
      const { data } = await (await send(request, signal)).json();
      const { images, examples } = request.body;
      const title = `${counted(images.length, "picture")}: ${Object.keys(examples).join(" or ")}?`;
      await stages.teach.add(await kept.put({ kind: "teach", title, at: Date.now(), request, answer: { data }, given: images[0] }));
    }),

  restore({ body: { images, examples } }) {
    const all = Object.entries(examples);
    while (labels.length > all.length) labels.pop();
    while (labels.length < all.length) addLabel();
    showLabels();
    for (const [i, [word, pictures]] of all.entries()) {
      labels[i].input.value = word;
      labels[i].examples.set(pictures);
    }
    unlabelled.set(images);
    $("button[type=submit]", teachForm).focus();
  },
};

uses.push({ words: "Picture to classify", tab: "teach", place: unlabelled });

/** An output of this tab: a row a picture, and the examples. */
function taughtNode({ title, request, answer }) {
  const { images, examples } = request.body;
  const row = ({ index, labels }) => el("li", { class: "row" },
    el("figure", { class: "given" }, enlarging(el("img", { src: images[index].url, alt: images[index].name }), images[index].name)),
    el("div", { class: "scores" }, ...labels.flatMap(({ label, probability }) => [
      el("span", {}, label),
      el("span", { class: "share" }, el("span", { style: `width: ${100 * probability}%` })),
      el("span", {}, percent(probability)),
    ])));
  const seen = Object.entries(examples).map(([label, pictures], i) =>
    el("li", { class: "source", style: `--tint: var(--source-${i % 4})` },
      el("div", { class: "frame" }, enlarging(el("img", { src: pictures[0].url, alt: `an example of ${label}` }), `an example of ${label}`)),
      el("div", {}, el("b", {}, label), el("p", { class: "quiet" }, counted(pictures.length, "example")))));
  return el("article", { class: "card output", "aria-label": title },
    el("h2", {}, title),
    el("ul", { class: "taught" }, ...answer.data.map(row)),
    el("p", { class: "quiet" }, "from these examples"),
    el("ol", { class: "sources", "aria-label": "Sources" }, ...seen),
    el("div", { class: "tools" }, button("Same settings", () => kinds.teach.restore(request))),
    el("details", {}, el("summary", {}, "Details and commands"), el("div", { class: "tools" }, ...copyButtons(() => request))));
}
