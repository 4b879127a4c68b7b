// Start: the page as it is opened.
"use strict";

const settingsMade = makeSettings().catch(() => {}); // what is wrong with the server, the facts tell

{
  const crisp = $("#crisp");
  const show = () => document.documentElement.classList.toggle("smooth", !crisp.checked);
  crisp.addEventListener("change", () => { show(); kept.choose("crisp", crisp.checked); });
  kept.chosen("crisp").then((chosen) => { crisp.checked = chosen ?? true; show(); });
}

async function start() {
  route();
  const cards = await kept.cards();
  await Promise.all(Object.values(stages).map((stage) => stage.fill(cards)));
  const example = $("#example").textContent.trim();
  if (!stages.draw.cards.length && example) await stages.draw.show(unpack(example));
  $("#start").open = !cards.length;
  try {
    await readFacts();
    if (server.hasMemory) await showStart();
  } catch (error) {
    $("#draw [role=alert]").textContent = error.message;
  }
}

start();
