// Adding to the memory: pictures and folders, with what became of each.
"use strict";

const addForm = $("#add");
let rows = []; // { picture, input, metadata, state, said, node }: what is to be remembered, and what was

const adding = dropPlace($("#add-pictures"), (pictures) => addRows(pictures.map((picture) => ({ picture }))));
adding.takeAll = async (transfer) => guardedForm(addForm, async () => addFiles(await filesOf(transfer)));
uses.push({ words: "Picture to remember", tab: "memory", place: adding });

$("[name=folder]", addForm).addEventListener("change", function () {
  const files = [...this.files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));
  this.value = "";
  guardedForm(addForm, () => addFiles(files));
});

async function guardedForm(form, act) {
  const alert = $("[role=alert]", form);
  alert.textContent = "";
  try { await act(); } catch (error) { alert.textContent = error.message; }
}

/** The files of what was dropped, those in folders as well, as { file, path }. */
async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const found = await Promise.all(entries.map(walk));
  return found.length ? found.flat() : [...transfer.files].map((file) => ({ file, path: file.name }));
}

async function walk(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ file, path: entry.fullPath.replace(/^\//, "") }];
  }
  const reader = entry.createReader(), inside = [];
  for (;;) { // a hundred at a time
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
    inside.push(...some);
  }
  return (await Promise.all(inside.map(walk))).flat();
}

/** Pictures, with captions from a metadata.jsonl or a text file of the same name beside them. */
async function addFiles(files) {
  const isPicture = ({ file }) => file.type.startsWith("image/");
  files.sort((a, b) => a.path.localeCompare(b.path));
  const pictures = files.filter(isPicture), said = new Map(), used = new Set();
  for (const one of files) {
    if (/(^|\/)metadata\.jsonl$/.test(one.path)) {
      used.add(one);
      for (const line of (await one.file.text()).split("\n").filter((line) => line.trim())) {
        const { file_name: name, ...rest } = JSON.parse(line);
        said.set(one.path.replace("metadata.jsonl", name), rest);
      }
    }
  }
  for (const one of files.filter(({ path }) => path.endsWith(".txt"))) {
    const stem = one.path.slice(0, -".txt".length);
    for (const { path } of pictures.filter(({ path }) => path.replace(/\.\w+$/, "") === stem)) {
      used.add(one);
      said.set(path, { text: (await one.file.text()).trim() });
    }
  }
  addRows(pictures.map(({ file, path }) => {
    const { id = null, text = "", ...metadata } = said.get(path) ?? {};
    return { picture: new Picture(path, URL.createObjectURL(file), file), id, text, metadata };
  }));
  const others = files.filter((one) => !isPicture(one) && !used.has(one)).map(({ path }) => path);
  const few = others.slice(0, 3).join(", ") + (others.length > 3 ? ` and ${others.length - 3} more` : "");
  if (!pictures.length) throw new Error(others.length ? `There is no picture in it: ${few}.` : "There is no file in it.");
  if (others.length) $("[role=status]", addForm).textContent = `Left out, for they are no pictures: ${few}.`;
}

function addRows(given) {
  $("#adding").open = true;
  for (const { picture, id = null, text = "", metadata = {} } of given) {
    const input = el("input", { type: "text", autocomplete: "off", placeholder: "a caption", value: text });
    const row = { picture, id, input, metadata, state: "waiting", said: el("span", { class: "hint" }) };
    row.node = el("li", {},
      el("img", { src: picture.url, alt: picture.name }),
      el("label", {}, el("span", { class: "unseen" }, `Caption of ${picture.name}`), input),
      row.said,
      button("×", () => takeOut(row), { "aria-label": `Take ${picture.name} out` }));
    rows.push(row);
  }
  showRows();
}

/** Takes a picture out, also while it is on its way: then it is deleted when it has come. */
function takeOut(row) {
  row.takenOut = true;
  rows = rows.filter((one) => one !== row);
  showRows();
  $("input[type=file]", addForm).focus();
}

function showRows() {
  $("#add .pending").replaceChildren(...rows.map((row) => row.node));
  $("[name=names]", addForm).hidden = !rows.some((row) => row.state === "waiting" && !row.input.value);
  $("[name=done]", addForm).hidden = !rows.some((row) => row.state === "done");
}

function mark(row, state, words) {
  Object.assign(row, { state });
  row.said.textContent = words;
  row.node.className = state;
  row.input.disabled = state === "sending" || state === "done";
}

$("[name=names]", addForm).addEventListener("click", () => {
  for (const { picture, input, state } of rows) {
    if (state !== "done" && !input.value) input.value = picture.name.replace(/^.*\//, "").replace(/\.\w+$/, "").replace(/[_-]+/g, " ");
  }
  showRows();
});
$("[name=done]", addForm).addEventListener("click", () => { rows = rows.filter((row) => row.state !== "done"); showRows(); });

asks(addForm,
  () => {
    if (!rows.some((row) => row.state !== "done")) throw new Error("Give pictures to remember first.");
    for (const row of rows) if (row.state === "failed") mark(row, "waiting", "");
  },
  async (_, signal, progress) => {
    const count = { new: 0, known: 0, failed: 0 };
    const next = () => rows.find((row) => row.state === "waiting"); // of those that are still there
    try {
      for (let row = next(); row; row = next()) {
        const over = rows.filter((one) => one.state === "done" || one.state === "failed").length;
        progress(over / rows.length, `${over + 1} of ${rows.length}`);
        const became = await remember(row, signal);
        if (became) count[became]++;
      }
    } finally {
      showRows();
      await changedMemory();
    }
    const told = [[count.new, "added"], [count.known, "there already"], [count.failed, "failed"]];
    const found = count.new ? " The next request can find them." : "";
    return `${told.filter(([number]) => number).map(([number, word]) => `${number} ${word}`).join(", ") || "Nothing added"}.${found}`;
  });

/** Sends one picture; returns what became of it: new, known, failed, or null if it was taken out meanwhile. */
async function remember(row, signal) {
  mark(row, "sending", "…");
  try {
    const document = { id: row.id, text: row.input.value.trim(), image: await withinLimits(row.picture), metadata: row.metadata };
    const [added, isNew] = await addDocument(document, signal);
    if (row.takenOut) {
      if (isNew) await deleteDocument(added.id);
      return null;
    }
    mark(row, "done", isNew ? "added" : "was there already");
    return isNew ? "new" : "known";
  } catch (error) {
    mark(row, signal.aborted ? "waiting" : "failed", signal.aborted ? "" : error.message);
    if (signal.aborted) throw error;
    return row.takenOut ? null : "failed";
  }
}

/** The picture, or a smaller one where the server would refuse it. */
async function withinLimits(picture) {
  const SMALL_BYTES = 1_000_000; // need not be looked at
  if (picture.blob.size < SMALL_BYTES) return picture;
  const { naturalWidth: width, naturalHeight: height } = await picture.img();
  const fits = width * height <= server.limits.pixels && picture.blob.size < server.limits.body_bytes;
  return fits ? picture : picture.atMost(2 * MOST_PX);
}
