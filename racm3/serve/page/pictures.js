// Pictures: reading them, the places that take them, and handing any picture of the page to any place.
"use strict";

/** A file that is a picture: in JSON it is a data URL. */
class Picture {
  #blob;

  constructor(name, url, blob = null) {
    Object.assign(this, { name, url });
    this.#blob = blob;
  }

  get type() { return this.url.slice(5, this.url.indexOf(";")); }

  get blob() {
    return this.#blob ??= new Blob([Uint8Array.from(atob(this.url.split(",")[1]), (letter) => letter.charCodeAt(0))], { type: this.type });
  }

  toJSON() { return this.url; }

  static async read(blob, name) {
    if (!blob.type.startsWith("image/")) throw new Error(`${name} is not a picture.`);
    const url = await new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => reject(new Error(`${name} cannot be read.`));
      reader.readAsDataURL(blob);
    });
    return new Picture(name, url, blob);
  }

  static fromBase64(data, name) {
    return new Picture(name, `data:image/png;base64,${data}`);
  }

  static async fromCanvas(canvas, name) {
    return Picture.read(await new Promise((resolve) => canvas.toBlob(resolve, "image/png")), name);
  }

  /** The pixels of an <img>. */
  static fromImg(img, name) {
    return Picture.fromCanvas(drawn(img, img.naturalWidth, img.naturalHeight), name);
  }

  /** As an <img>, loaded. */
  async img() {
    const img = el("img", { src: this.url });
    await img.decode().catch(() => { throw new Error(`${this.name} cannot be read as a picture.`); });
    return img;
  }

  async bytes() { return new Uint8Array(await this.blob.arrayBuffer()); }

  /** This picture, or where a side is longer than `most` pixels, a smaller one. */
  async atMost(most) {
    const img = await this.img();
    const scale = most / Math.max(img.naturalWidth, img.naturalHeight);
    if (scale >= 1) return this;
    const canvas = drawn(img, Math.round(img.naturalWidth * scale), Math.round(img.naturalHeight * scale));
    return Picture.fromCanvas(canvas, this.name.replace(/\.\w+$/, "") + "-small.png");
  }
}

/** A canvas with a picture, or a part [x, y, width, height] of it, scaled to a size. */
function drawn(img, width, height, part = [0, 0, img.naturalWidth, img.naturalHeight]) {
  const canvas = el("canvas", { width, height }), context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(img, ...part, 0, 0, width, height);
  return canvas;
}

/** Requests and outputs as plain JSON, pictures and all: what history and saved files keep. */
const pack = (value) => JSON.stringify(value, function (key, one) {
  const own = this[key]; // its toJSON has run: `one` is a URL already
  return own instanceof Picture ? { picture: one, name: own.name } : one;
});
const unpack = (text) => JSON.parse(text, (_, one) =>
  typeof one?.picture === "string" && one.picture.startsWith("data:") ? new Picture(one.name, one.picture) : one);


// Places ------------------------------------------------------------------------------------------------------------

const MOST_PX = 1024; // a side: the model looks at far less, and a request stays small

const places = new Map(); // the node of each

/** A place that takes pictures: dropped, pasted, chosen, or dragged over from anywhere on the page. Calls `changed`
 *  with the pictures in it. A `data-bare` place hands them on at once, as they are, and shows none. */
function dropPlace(node, changed = () => {}) {
  const many = "many" in node.dataset, bare = "bare" in node.dataset;
  const input = el("input", { type: "file", accept: "image/*", multiple: many });
  const thumbs = el("ul", { class: "thumbs" });
  const place = {
    node,
    pictures: [],
    set(pictures) {
      place.pictures = pictures;
      thumbs.replaceChildren(...pictures.map((picture, i) => el("li", {},
        el("img", { src: picture.url, alt: picture.name }),
        button("×", () => { place.set(pictures.filter((_, j) => j !== i)); input.focus(); }, { "aria-label": `Take ${picture.name} out` }))));
      changed(pictures);
    },
    async put(pictures) {
      if (bare) return changed(pictures);
      const own = await Promise.all(pictures.map((picture) => picture.atMost(MOST_PX)));
      place.set(many ? [...place.pictures, ...own] : own.slice(-1));
    },
    async take(files) {
      const alert = node.closest("form").querySelector("[role=alert]");
      alert.textContent = "";
      try {
        const read = await Promise.all([...files].map((file) => Picture.read(file, file.name)));
        if (!read.length) return;
        await place.put(read);
        if (read.length === 1) await offerRequest(read[0]);
      } catch (error) {
        alert.textContent = error.message;
      }
    },
  };
  node.append(
    el("label", {}, el("span", {}, node.dataset.words), input,
      el("span", { class: "hint" }, node.dataset.hint ?? `Drop ${many ? "pictures" : "a picture"} here, paste, or choose.`)),
    thumbs);
  input.addEventListener("change", () => { place.take([...input.files]); input.value = ""; });
  node.addEventListener("dragover", (event) => { event.preventDefault(); node.classList.add("over"); });
  node.addEventListener("dragleave", () => node.classList.remove("over"));
  node.addEventListener("drop", async (event) => {
    event.preventDefault();
    event.stopPropagation();
    node.classList.remove("over");
    const { files } = event.dataTransfer, img = dragged;
    if (place.takeAll && !img) return place.takeAll(event.dataTransfer);
    place.take(files.length || !img ? files : [(await Picture.fromImg(img, nameOf(img))).blob].map((blob) => new File([blob], nameOf(img), { type: blob.type })));
  });
  places.set(node, place);
  return place;
}

let dragged = null; // a picture of this page on its way

const nameOf = (img) => fileName(img.alt.replace(/^given: |\.\w+$/g, ""), "png");

document.addEventListener("dragstart", (event) => { dragged = event.target.tagName === "IMG" ? event.target : null; });
document.addEventListener("dragend", () => { dragged = null; });
document.addEventListener("dragover", (event) => { if (event.dataTransfer.types.includes("Files")) event.preventDefault(); });
document.addEventListener("drop", (event) => { // beside every place: perhaps a picture that carries its request
  const [file] = event.dataTransfer.files;
  if (!file) return;
  event.preventDefault();
  if (!dragged) openSaved(file);
});
document.addEventListener("paste", (event) => {
  const shown = [...places.keys()].filter((node) => node.checkVisibility());
  const node = shown.find((one) => one.contains(document.activeElement)) ?? shown[0];
  if (node && event.clipboardData.files.length) places.get(node).take(event.clipboardData.files);
});


// Showing and handing on --------------------------------------------------------------------------------------------

/** A picture of the server. An <img> sends no token: where there is one, the picture is fetched. */
function remotePicture(path, alt) {
  const img = el("img", { alt, loading: "lazy" });
  if (!sessionStorage.getItem("token")) img.src = path;
  else call(path).then((answer) => answer.blob()).then((blob) => { img.src = URL.createObjectURL(blob); }, () => {});
  return img;
}

async function fetchPicture(path, name) {
  return Picture.read(await (await call(path, { patient: true })).blob(), name);
}

const uses = []; // { words, tab, place }: where any picture of the page can go

/** The lines of a menu that hand a picture on; `picture()` gives it. */
const useLines = (picture) => uses.map(({ words, tab, place }) => [words, async () => {
  try {
    const one = await picture();
    showTab(tab);
    await place.put([one]);
    place.node.scrollIntoView({ block: "nearest" });
    $("input", place.node).focus();
  } catch (error) {
    notice(error.message);
  }
}]);

const useButton = (picture, what) => menuButton("Use as…", () => useLines(picture), { "aria-label": `Use ${what} as…` });

/** A picture that a click, or its button, shows as large as the window. Not in the button: it could not be dragged. */
function enlarging(img, words) {
  img.addEventListener("click", () => enlarge(img, words));
  return el("span", { class: "enlarge" }, img, button("", () => enlarge(img, words), { "aria-label": `Enlarge ${words}`, title: "Enlarge" }));
}

/** The picture alone, as large as one likes. The back button closes it. */
function enlarge(img, words) {
  const dialog = $("#viewer"), large = $("img", dialog);
  Object.assign(large, { src: img.currentSrc, alt: words });
  history.pushState({ viewer: true }, "");
  dialog.showModal();
  zoom(0);
}

let zoomed = 1; // screen pixels a pixel

/** Zooms by a factor; 0: to fit. */
function zoom(factor) {
  const dialog = $("#viewer"), img = $("img", dialog), room = $(".room", dialog);
  const fit = Math.min((room.clientWidth - 16) / img.naturalWidth, (room.clientHeight - 16) / img.naturalHeight) || 1;
  zoomed = factor ? Math.min(Math.max(zoomed * factor, fit / 4, .1), 64) : fit;
  img.style.width = `${zoomed * img.naturalWidth}px`;
  $("output", dialog).textContent = `${Math.round(100 * zoomed).toLocaleString("en")} %`;
}

{
  const dialog = $("#viewer");
  $("img", dialog).addEventListener("load", () => zoom(0));
  $("[name=in]", dialog).addEventListener("click", () => zoom(1.5));
  $("[name=out]", dialog).addEventListener("click", () => zoom(1 / 1.5));
  $("[name=fit]", dialog).addEventListener("click", () => zoom(0));
  $(".room", dialog).addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15);
  }, { passive: false });
  dialog.addEventListener("keydown", (event) => {
    const act = { "+": 1.5, "=": 1.5, "-": 1 / 1.5, "0": 0 }[event.key];
    if (act !== undefined) zoom(act);
  });
  dialog.addEventListener("close", () => { if (history.state?.viewer) history.back(); });
  window.addEventListener("popstate", () => { if (dialog.open && !history.state?.viewer) dialog.close(); });
}
