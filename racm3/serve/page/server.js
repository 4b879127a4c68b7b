// The server: requests and their errors, tokens, streams, and what it says of itself.
"use strict";

const root = location.pathname.replace(/\/[^/]*$/, ""); // where a proxy puts the server
const server = { model: null, imageSize: 64, grid: [8, 8], hasMemory: false, documents: 0, limits: {} };

/** The answer to a request; throws an Error that says what the server says, or an AbortError. A `patient` request waits
 *  where the server says that it is busy. */
async function call(path, { method, body, type, signal, patient } = {}) {
  const token = sessionStorage.getItem("token");
  const headers = { ...(token && { Authorization: `Bearer ${token}` }), ...(type && { "Content-Type": type }) };
  let response;
  try {
    response = await fetch(path.startsWith(`${root}/`) ? path : root + path, { method: method ?? (body ? "POST" : "GET"), headers, body, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  const wait = response.headers.get("Retry-After");
  if (response.status === 429 && patient) {
    await pause(1000 * (Number(wait) || 1));
    signal?.throwIfAborted();
    return call(path, { method, body, type, signal, patient });
  }
  const message = await response.json().then((answer) => answer.error.message, () => `The server answered ${response.status}.`);
  if (response.status === 401) {
    await askToken(token && message);
    return call(path, { method, body, type, signal, patient });
  }
  throw new Error(wait ? `${message} (Try again in ${wait} s.)` : message);
}

let asking = null;

/** Resolves when the user has given a token; all requests that wait for one share the question. */
function askToken(wrong) {
  asking ??= new Promise((resolve, reject) => {
    const dialog = $("#token");
    $("[role=alert]", dialog).textContent = wrong || "";
    $("input", dialog).value = "";
    dialog.returnValue = "";
    dialog.showModal();
    dialog.addEventListener("close", () => {
      asking = null;
      if (dialog.returnValue !== "yes") return reject(new Error("This server answers only with a token."));
      sessionStorage.setItem("token", $("input", dialog).value.trim());
      $("#change-token").hidden = false;
      resolve();
    }, { once: true });
  });
  return asking;
}

$("#change-token").hidden = !sessionStorage.getItem("token");
$("#change-token").addEventListener("click", () => askToken("").catch(() => {})); // the old one stays

/** A request is { path, body, multipart }; its body holds Pictures where the API takes pictures. */
function send({ path, body, multipart }, signal, patient = false) {
  if (!multipart) return call(path, { body: JSON.stringify(body), type: "application/json", signal, patient });
  const form = new FormData();
  for (const [name, value] of Object.entries(body)) {
    for (const one of [value].flat()) {
      if (one instanceof Picture) form.append(Array.isArray(value) ? `${name}[]` : name, one.blob, one.name);
      else form.append(name, typeof one === "object" ? JSON.stringify(one) : one);
    }
  }
  return call(path, { body: form, signal, patient });
}

const withSettings = (request, settings, more = {}) => ({
  ...request, body: { ...request.body, ...more, racm3: { ...request.body.racm3, ...settings } },
});

const brokenOff = () => new Error("The answer broke off. Is the server still running?");

/** The objects of a stream of server-sent events, and { ahead } of its comments, how many are; whoever stops reading them
 *  closes the stream. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => { throw error.name === "AbortError" ? error : brokenOff(); });
      if (done) return;
      const blocks = (text + value).split(/\r?\n\r?\n/);
      text = blocks.pop();
      for (const block of blocks) {
        const ahead = /^: (\d+) ahead$/.exec(block);
        if (ahead) yield { ahead: Number(ahead[1]) };
        const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
        if (data && data.trim() !== "[DONE]") yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // that it broke already was said
  }
}

async function readFacts() {
  const { data: [model] } = await (await call("/v1/models")).json();
  const { documents, image_size_px: imageSize, grid, limits } = model.racm3;
  Object.assign(server, { model: model.id, imageSize, grid, limits, documents: documents ?? 0, hasMemory: documents !== null });
  const held = server.hasMemory ? counted(documents, "document") : "no memory";
  $("#facts").textContent = [model.id, `${imageSize} px`, held].join(" · ");
}
