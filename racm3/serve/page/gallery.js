// Gallery: all outputs that this browser keeps.
"use strict";

const galleryForm = $("#gallery form");

onShown.gallery = async () => {
  const cards = await kept.cards(), words = galleryForm.words.value.trim().toLowerCase();
  const found = cards.filter((card) => `${card.title} ${card.words ?? ""}`.toLowerCase().includes(words));
  $("#kept").textContent = !cards.length ? "Nothing yet: what you draw, describe and edit is kept here, in this browser."
    : `${counted(found.length, "output")}${found.length < cards.length ? ` of ${cards.length}` : ""}, kept in this browser only`;
  $("[name=zip]", galleryForm).disabled = !found.length;
  $("#gallery .outputs").replaceChildren(...found.map((card) => el("li", { class: "document" },
    cardButton(card, async () => { showTab(card.kind); await stages[card.kind].choose(card.id); }),
    el("p", {}, card.title),
    menuButton("⋯", () => [
      ["Show", async () => { showTab(card.kind); await stages[card.kind].choose(card.id); }],
      ["Same settings", async () => restore(await kept.get(card.id))],
      ...(card.picture ? useLines(async () => pictureOfOutput(await kept.get(card.id))) : []),
      ["Delete", () => dropOutput(card)],
    ], { "aria-label": `What to do with ${card.title}` }))));
};

const pictureOfOutput = ({ answer, given, title }) => (answer.picture ? Picture.fromBase64(answer.picture, fileName(title, "png")) : given);

async function dropOutput(card) {
  const record = await kept.get(card.id);
  await kept.delete(card.id);
  await Promise.all([stages[card.kind].drop(card.id), onShown.gallery()]);
  notice(`Deleted “${card.title}”.`, "Undo", async () => {
    await kept.put(record);
    await Promise.all([stages[card.kind].fill(await kept.cards()), onShown.gallery()]);
  });
}

galleryForm.words.addEventListener("input", onShown.gallery);
galleryForm.addEventListener("submit", (event) => event.preventDefault());

$("[name=zip]", galleryForm).addEventListener("click", async () => {
  const words = galleryForm.words.value.trim().toLowerCase(), files = [], told = [];
  for (const card of (await kept.cards()).reverse()) {
    if (!`${card.title} ${card.words ?? ""}`.toLowerCase().includes(words)) continue;
    const record = await kept.get(card.id);
    if (record.answer.picture) files.push({ name: fileName(record.title, "png"), bytes: new Uint8Array(await (await savedPng(record)).arrayBuffer()) });
    told.push({ kind: record.kind, title: record.title, at: new Date(record.at).toISOString(), words: record.answer.words ?? null, settings: record.answer.racm3 ?? null });
  }
  files.push({ name: "outputs.jsonl", bytes: new TextEncoder().encode(told.map((one) => `${JSON.stringify(one)}\n`).join("")) });
  saveAs(zip(files), "racm3.zip");
});

$("[name=open]", galleryForm).addEventListener("change", function () {
  openSaved(this.files[0]);
  this.value = "";
});
