// Describe: a picture to words.
"use strict";

const describeForm = $("#describe form");
const described = dropPlace($("#describe .drop"));

kinds.describe = {
  again: asks(describeForm,
    () => {
      const [picture] = described.pictures;
      if (!picture) throw new Error("Give a picture first.");
      const content = [{ type: "image_url", image_url: { url: picture } }];
      return { path: "/v1/chat/completions", body: { messages: [{ role: "user", content }], racm3: settingsOf(describeForm) } };
    },
    (request, signal, progress) => {
      const given = pictureOf(request);
      return complete("describe", request, { title: given.name, given }, signal, progress);
    }),

  restore(request) {
    described.set([pictureOf(request)]);
    putSettings(describeForm, request.body.racm3);
    $("button[type=submit]", describeForm).focus();
  },
};

const pictureOf = (request) => request.body.messages[0].content[0].image_url.url;

uses.push({ words: "Picture to describe", tab: "describe", place: described });
