// Asking: the settings of a request, and a form that sends one, shows how far it is, and can be stopped.
"use strict";

const SETTINGS = { // in the words of the page, in this order; what they may be, the server says
  k: "Documents read",
  contexts: "Contexts averaged",
  samples: "Best of",
  context_aware: "Weight of the documents",
  guidance: "Guidance",
  temperature: "Temperature",
  seed: "Seed",
  retrieve: "Use the memory",
};
const SEEDS = 1_000_000; // short enough to be told to somebody

const newSeed = () => Math.floor(Math.random() * SEEDS);

/** Makes the fields of all settings, from the API's description of itself. An empty one is the server's default. */
async function makeSettings() {
  const { components } = await (await call("/openapi.json")).json();
  const options = components.schemas.Options.properties;
  for (const details of $$("[data-settings]")) {
    const names = Object.keys(SETTINGS).filter((name) => options[name] && !details.dataset.without?.split(" ").includes(name));
    details.append(el("div", { class: "fields" }, ...names.map((name) => settingField(name, options[name]))));
  }
}

function settingField(name, option) {
  const { type, minimum, maximum, description = null } = { ...option, ...option.anyOf?.[0] };
  if (type === "boolean") return el("label", { class: "switch" }, el("input", { type: "checkbox", role: "switch", name, checked: option.default }), SETTINGS[name]);
  const usual = name === "seed" ? "a new one" : option.default ?? "as usual";
  return el("label", { title: description }, el("span", {}, SETTINGS[name]),
    el("input", { type: "number", name, min: minimum, max: maximum, step: type === "integer" ? 1 : "any", placeholder: usual }));
}

/** The settings of a form that differ from the defaults, and a seed. */
function settingsOf(form) {
  const settings = { seed: newSeed() };
  for (const input of $$("[data-settings] input", form)) {
    if (input.type === "checkbox") { if (!input.checked) settings[input.name] = false; }
    else if (input.value !== "") settings[input.name] = Number(input.value);
  }
  return settings;
}

function putSettings(form, settings) {
  for (const input of $$("[data-settings] input", form)) {
    const value = settings[input.name];
    if (input.type === "checkbox") input.checked = value ?? true;
    else input.value = value ?? "";
  }
}

/** Makes `run(request, signal, progress)` what the form does, with `build` making the request; its button stops it
 *  meanwhile. Returns a function that runs another request the same way. */
function asks(form, build, run) {
  const submit = $("button[type=submit]", form), word = submit.textContent;
  const [status, alert] = [$("[role=status]", form), $("[role=alert]", form)];
  const bar = el("progress", { "aria-label": "Progress", hidden: true }), far = el("span", { class: "hint", "aria-hidden": "true" });
  status.before(bar, far);
  /** Shows how far it is: a share of 1, or null where nobody knows; and in words. */
  function progress(share, words = share === null ? "" : percent(share)) {
    bar.hidden = false;
    if (share === null) bar.removeAttribute("value");
    else bar.value = share;
    far.textContent = words;
  }
  let running = null;
  async function start(make) {
    if (running) return;
    running = new AbortController();
    const { signal } = running, begun = performance.now();
    Object.assign(submit, { textContent: "Stop", formNoValidate: true });
    alert.textContent = "";
    status.textContent = "Working…";
    try {
      const said = await run(await make(), signal, progress);
      status.textContent = said ?? `Done in ${((performance.now() - begun) / 1000).toFixed(1)} s.`;
    } catch (error) {
      status.textContent = signal.aborted ? "Stopped." : "";
      if (!signal.aborted) alert.textContent = error.message;
    } finally {
      running = null;
      bar.hidden = true;
      far.textContent = "";
      Object.assign(submit, { textContent: word, formNoValidate: false });
    }
  }
  form.addEventListener("invalid", (event) => { // what is wrong in closed settings would not be seen
    const details = event.target.closest("details");
    if (details) details.open = true;
  }, true);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) running.abort();
    else start(build);
  });
  return (request) => start(() => request);
}
