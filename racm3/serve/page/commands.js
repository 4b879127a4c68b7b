// A request as a command: curl, and OpenAI's client for Python.
"use strict";

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function asCurl({ path, body, multipart }) {
  const lines = [`curl ${location.origin}${path}`];
  if (sessionStorage.getItem("token")) lines.push('-H "Authorization: Bearer $RACM3_TOKEN"');
  if (multipart) {
    for (const [name, value] of Object.entries(body)) {
      for (const one of [value].flat()) {
        if (one instanceof Picture) lines.push(`-F ${shell(`${Array.isArray(value) ? `${name}[]` : name}=@"${one.name.replace(/[\\"]/g, "\\$&")}"`)}`);
        else lines.push(`--form-string ${shell(`${name}=${typeof one === "object" ? JSON.stringify(one) : one}`)}`);
      }
    }
    return lines.join(" \\\n  ");
  }
  const pictures = [];
  // Pictures become a mark and a number, of a letter that nobody types. Their toJSON has run: this[key] is the picture.
  const json = JSON.stringify(body, function (key, value) {
    return this[key] instanceof Picture ? `\uE000${pictures.push(this[key]) - 1}` : value;
  });
  const filled = json.replace(/[\\$`]/g, "\\$&").replace(/"\uE000(\d+)"/g, (_, i) =>
    `"data:${pictures[i].type};base64,$(base64 < ${shell(pictures[i].name)} | tr -d '\\n')"`);
  lines.push("-H 'Content-Type: application/json'", `-d @- <<END\n${filled}\nEND`);
  return lines.join(" \\\n  ");
}

const METHODS = { // of the official client; the rest of the API is reached by its `post`
  "/v1/images/generations": "images.generate",
  "/v1/images/edits": "images.edit",
  "/v1/chat/completions": "chat.completions.create",
};

function asPython({ path, body, multipart }) {
  const quote = JSON.stringify;
  let reads = false; // pictures that go into JSON
  const write = (value) => {
    if (value instanceof Picture && multipart) return `open(${quote(value.name)}, "rb")`;
    if (value instanceof Picture) { reads = true; return `${quote(`data:${value.type};base64,`)} + b64(${quote(value.name)})`; }
    if (Array.isArray(value)) return `[${value.map(write).join(", ")}]`;
    if (value === null) return "None";
    if (typeof value === "boolean") return value ? "True" : "False";
    if (typeof value !== "object") return quote(value);
    return `{${Object.entries(value).map(([key, one]) => `${quote(key)}: ${write(one)}`).join(", ")}}`;
  };
  const key = sessionStorage.getItem("token") ? 'os.environ["RACM3_TOKEN"]' : '"none"';
  const { racm3, ...fields } = body;
  const named = Object.entries({ model: server.model, ...fields }).map(([name, value]) => `    ${name}=${write(value)},\n`);
  const own = racm3 ? `    extra_body={"racm3": ${write(racm3)}},\n` : "";
  const asked = METHODS[path] ? `client.${METHODS[path]}(\n${named.join("")}${own})` : `client.post(${quote(path.slice(3))}, cast_to=object, body=${write(body)})`;
  const draws = path.startsWith("/v1/images");
  const shown = draws ? 'open("out.png", "wb").write(base64.b64decode(answer.data[0].b64_json))'
    : path.startsWith("/v1/chat") ? "print(answer.choices[0].message.content)" : "print(answer)";
  const helper = 'def b64(file):\n    return base64.b64encode(open(file, "rb").read()).decode()\n\n\n';
  return `${draws || reads ? "import base64\n" : ""}${key.startsWith("os") ? "import os\n" : ""}
from openai import OpenAI

${reads ? `\n${helper}` : ""}client = OpenAI(base_url="${location.origin}/v1", api_key=${key})
answer = ${asked}
${shown}
`.trimStart();
}

/** Buttons that copy the request as a command, and the place that says so. */
function copyButtons(request) {
  const said = el("span", { role: "status" });
  const line = (name, text) => button(`Copy as ${name}`, async () => {
    await copy(text(request()));
    said.textContent = `Copied as ${name}.`;
  });
  return [line("curl", asCurl), line("Python", asPython), said];
}
