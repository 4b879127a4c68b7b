// Memory: search while typing, look through, choose, delete and take that back, edit captions, export.
"use strict";

const PAGE = 24; // documents
const DOCUMENTS = "/v1/memory/documents";
const searchForm = $("#search");
const wanted = dropPlace($("#search-picture"), () => look());
const chosen = new Map(); // by id: documents
let offset = 0;
let shownDocuments = [], looking = null;

/** Shows what the search form asks for. Whoever asks last is answered. */
async function look() {
  looking?.abort();
  looking = new AbortController();
  const { signal } = looking, alert = $("[role=alert]", searchForm);
  try {
    const { documents, words, more = false, pages = false } = await asked(signal);
    signal.throwIfAborted();
    alert.textContent = "";
    showDocuments(documents, words);
    $("#memory nav").hidden = !pages;
    $("#memory [name=back]").disabled = offset === 0;
    $("#memory [name=next]").disabled = !more;
  } catch (error) {
    if (error.name !== "AbortError") alert.textContent = error.message;
  }
}

/** What the form asks for: without words and picture, a page of all documents. */
async function asked(signal) {
  const text = searchForm.words.value.trim(), [image] = wanted.pictures;
  const where = searchForm.where.value.split(",").map((one) => one.trim()).filter(Boolean);
  const order = searchForm.order.value;
  if (text || image) {
    const body = { ...(text && { text }), ...(image && { image }), ...(where.length && { where }), limit: 2 * PAGE };
    const { data } = await (await send({ path: "/v1/memory/search", body }, signal)).json();
    if (order === "caption") data.sort((a, b) => (a.text ?? "").localeCompare(b.text ?? ""));
    const how = order === "caption" ? "by caption" : "best first";
    return { documents: data, words: data.length ? `The ${data.length} nearest, ${how}` : "Nothing that fulfils the filter" };
  }
  const chosen = new URLSearchParams([["offset", offset], ["limit", PAGE], ...where.map((one) => ["where", one])]);
  if (order === "caption") chosen.set("sort", "text");
  else if (order !== "oldest") chosen.set("order", "down");
  const { data, total } = await (await call(`${DOCUMENTS}?${chosen}`, { signal })).json();
  if (!data.length && offset) { // the last page is gone
    offset = Math.max(0, Math.floor((total - 1) / PAGE) * PAGE);
    return asked(signal);
  }
  if (!total) return { documents: [], words: where.length ? "Nothing that fulfils the filter" : "The memory is empty", pages: true };
  const words = `${(offset + 1).toLocaleString("en")} to ${(offset + data.length).toLocaleString("en")} of ${counted(total, "document")}`;
  return { documents: data, words, more: offset + data.length < total, pages: true };
}

function showDocuments(documents, words) {
  shownDocuments = documents;
  $("#shown").textContent = words;
  $("#memory .documents").replaceChildren(...documents.map(documentNode));
  showChosen();
}

function documentNode(one) {
  const name = one.text ?? one.id;
  const tick = el("input", { type: "checkbox", "aria-label": `Choose ${name}`, checked: chosen.has(one.id), onchange() {
    if (this.checked) chosen.set(one.id, one);
    else chosen.delete(one.id);
    showChosen();
  } });
  const lines = () => [
    ["Edit caption", () => editCaption(one)],
    ...(one.image ? useLines(() => fetchPicture(one.image, fileName(name, "png"))) : []),
    ["Copy id", async () => { await copy(one.id); notice(`Copied ${one.id}.`); }],
    ["Delete", () => removeDocuments([one])],
  ];
  return el("li", { class: "document" },
    one.image ? enlarging(remotePicture(one.image, name), name) : null,
    el("p", {}, one.text ?? ""),
    el("p", { class: "quiet" }, one.score === undefined ? null : el("span", { title: "cosine with what was searched for" }, `score ${one.score.toFixed(3)}`)),
    el("div", { class: "tools foot" }, tick, menuButton("⋯", lines, { "aria-label": `What to do with ${name}`, title: one.id })));
}

function showChosen() {
  const bar = $("#chosen");
  bar.hidden = !shownDocuments.length;
  $("output", bar).textContent = chosen.size ? `${chosen.size} chosen` : "";
  for (const name of ["none", "delete"]) $(`[name=${name}]`, bar).hidden = !chosen.size;
  $("[name=export]", bar).textContent = chosen.size ? "Export them" : "Export the whole memory";
}

/** Runs what the memory's buttons do, and says what went wrong. */
async function guarded(act) {
  const alert = $("#memory-alert");
  alert.textContent = "";
  try { await act(); } catch (error) { alert.textContent = error.message; }
}

const changedMemory = () => readFacts().then(look);


// Looking -----------------------------------------------------------------------------------------------------------

let typed = null;
const TYPING_MS = 250;

for (const name of ["words", "where"]) searchForm[name].addEventListener("input", () => {
  clearTimeout(typed);
  offset = 0;
  typed = setTimeout(look, TYPING_MS);
});
searchForm.order.addEventListener("change", () => { offset = 0; look(); });
searchForm.addEventListener("submit", (event) => { event.preventDefault(); clearTimeout(typed); look(); });
$("[name=all]", searchForm).addEventListener("click", () => {
  searchForm.words.value = searchForm.where.value = "";
  offset = 0;
  wanted.set([]); // looks
});

const turn = (by) => { offset = Math.max(0, offset + by); return look(); };
$("#memory [name=back]").addEventListener("click", () => turn(-PAGE));
$("#memory [name=next]").addEventListener("click", () => turn(PAGE));
onShown.memory = () => guarded(changedMemory);
uses.push({ words: "Picture to search for", tab: "memory", place: wanted });


// Changing ----------------------------------------------------------------------------------------------------------

const ID = /^[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127}$/; // what the API takes as an id

/** Adds a document; an id that the API would not take is left to it. Returns [document, whether it is new]. */
async function addDocument({ id, text, image, metadata }, signal) {
  const own = id && ID.test(id), facts = metadata && Object.keys(metadata).length;
  const body = { ...(own && { id }), ...(text && { text }), ...(image && { image }), ...(facts && { metadata }) };
  const response = await send({ path: DOCUMENTS, multipart: true, body }, signal, true);
  return [await response.json(), response.status === 201];
}

const deleteDocument = (id) => call(`${DOCUMENTS}/${encodeURIComponent(id)}`, { method: "DELETE", patient: true });

const wholeOf = async (one) => ({ ...one, image: one.image && await fetchPicture(one.image, fileName(one.text ?? one.id, "png")) });

/** Deletes documents, and offers to add them again. */
const removeDocuments = (documents) => guarded(async () => {
  const wholes = [];
  try {
    for (const one of documents) {
      const whole = await wholeOf(one);
      await deleteDocument(one.id);
      chosen.delete(one.id);
      wholes.push(whole);
    }
  } finally {
    await changedMemory();
    $("#shown").focus(); // their buttons are gone
  }
  notice(`${counted(wholes.length, "document")} deleted from the disk; the next request does not find ${wholes.length === 1 ? "it" : "them"}.`, "Undo", () => guarded(async () => {
    for (const whole of wholes) await addDocument(whole);
    await changedMemory();
    notice(`${counted(wholes.length, "document")} added again.`);
  }));
});

async function editCaption(one) {
  const dialog = $("#caption"), input = $("input", dialog);
  input.value = one.text ?? "";
  $(".which", dialog).replaceChildren(...(one.image ? [remotePicture(one.image, "")] : []));
  dialog.returnValue = "";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  const text = input.value.trim();
  if (dialog.returnValue !== "yes" || text === (one.text ?? "")) return;
  await guarded(async () => {
    await call(`${DOCUMENTS}/${encodeURIComponent(one.id)}`, { method: "PATCH", body: JSON.stringify({ text }), type: "application/json", patient: true });
    await changedMemory();
    notice("The caption is changed.");
  });
}

{
  const bar = $("#chosen");
  $("[name=delete]", bar).addEventListener("click", () => removeDocuments([...chosen.values()]));
  $("[name=none]", bar).addEventListener("click", () => { chosen.clear(); showDocuments(shownDocuments, $("#shown").textContent); });
  $("[name=page]", bar).addEventListener("click", () => {
    for (const one of shownDocuments) chosen.set(one.id, one);
    showDocuments(shownDocuments, $("#shown").textContent);
  });
  $("[name=export]", bar).addEventListener("click", () => guarded(exportDocuments));
}

/** A zip of pictures and a metadata.jsonl, as `racm3 memory add` reads them: the chosen documents, or all. */
async function exportDocuments() {
  const documents = [...chosen.values()];
  const MOST = 100; // a page of the API
  if (!documents.length) {
    for (let from = 0; from < server.documents; from += MOST) {
      documents.push(...(await (await call(`${DOCUMENTS}?offset=${from}&limit=${MOST}`, { patient: true })).json()).data);
    }
  }
  const files = [], lines = [], taken = new Set();
  for (const [i, one] of documents.entries()) {
    const { id, text, metadata } = one, said = { id, ...(text && { text }), ...metadata };
    if (one.image) {
      const { image } = await wholeOf(one), name = uniqueName(fileName(id, "png"), taken);
      files.push({ name, bytes: await image.bytes() });
      said.file_name = name;
    }
    lines.push(said);
    $("output", $("#chosen")).textContent = `${i + 1} of ${documents.length}`;
  }
  files.push({ name: "metadata.jsonl", bytes: new TextEncoder().encode(lines.map((line) => `${JSON.stringify(line)}\n`).join("")) });
  saveAs(zip(files), "memory.zip");
  showChosen();
}
