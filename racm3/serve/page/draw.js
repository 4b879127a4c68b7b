// Draw: words to a picture. And what a newcomer sees: an example, things to try, what is in the memory.
"use strict";

const drawForm = $("#draw form");

kinds.draw = {
  again: asks(drawForm,
    () => ({ path: "/v1/images/generations", body: { prompt: drawForm.words.value, racm3: settingsOf(drawForm) } }),
    (request, signal, progress) => complete("draw", request, { title: request.body.prompt }, signal, progress)),

  restore({ body: { prompt, racm3 } }) {
    drawForm.words.value = prompt;
    putSettings(drawForm, racm3);
    $("button[type=submit]", drawForm).focus();
  },
};

onLink.draw = async (query) => {
  await settingsMade;
  const { prompt = "", ...settings } = Object.fromEntries(query);
  kinds.draw.restore({ body: { prompt, racm3: { ...settings, retrieve: settings.retrieve !== "false" } } });
};

/** Three things to try with pictures and captions of the memory, and a look into it. */
async function showStart() {
  const SEEN = 6;
  const offset = Math.floor(Math.random() * Math.max(1, server.documents - SEEN));
  const { data } = await (await call(`/v1/memory/documents?limit=${SEEN}&offset=${offset}`)).json();
  const both = data.filter((one) => one.text && one.image);
  $("#start").hidden = !data.length;
  $("#held").textContent = `In the memory: ${counted(server.documents, "document")}, such as`;
  $("#start .seen").replaceChildren(...data.map((one) => el("li", {},
    one.image ? enlarging(remotePicture(one.image, one.text ? "" : one.id), one.text ?? one.id) : null, // the text is below
    one.text ? el("p", { class: "hint" }, one.text) : null)));
  if (!both.length) return;
  const [first, second = first, third = first] = both, picture = (one) => fetchPicture(one.image, fileName(one.text, "png"));
  const line = (word, words, act) => el("li", {}, button([el("b", {}, word), ` ${words}`], act, { class: "try" }));
  $("#start .tries").replaceChildren(
    line("Draw", `“${first.text}”`, () => { drawForm.words.value = first.text; drawForm.requestSubmit(); }),
    line("Describe", `the picture of “${second.text}”`, () => guardedNotice(async () => {
      const one = await picture(second);
      showTab("describe");
      await described.put([one]);
      describeForm.requestSubmit();
    })),
    line("Edit", `this picture: put in “${third.text}”`, () => guardedNotice(async () => {
      const [whole, shown] = await Promise.all([picture(first), picture(third)]);
      showTab("edit");
      await easel.open(whole);
      await control.put([shown]);
      easel.box(0.25, 0.25, 0.75, 0.75);
    })));
}

async function guardedNotice(act) {
  try { await act(); } catch (error) { notice(error.message); }
}
