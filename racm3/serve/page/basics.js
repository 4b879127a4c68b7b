// Elements, numbers and words: what every other file uses.
"use strict";

const $ = (selector, inside = document) => inside.querySelector(selector);
const $$ = (selector, inside = document) => [...inside.querySelectorAll(selector)];

/** A new element. Attributes that are null or false are left out; those that begin with "on" are listeners. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const button = (words, onclick, more = {}) => el("button", { type: "button", class: "small", onclick, ...more }, words);
const counted = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
const percent = (share) => `${Math.round(100 * share)} %`;
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** A name for a file, made of the letters of a title. */
const fileName = (title, extension) => `${title.match(/[\p{L}\p{N}]+/gu)?.join("-").slice(0, 60) ?? "picture"}.${extension}`;

function saveAs(blob, name) {
  const href = URL.createObjectURL(blob);
  el("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const box = el("textarea", {}, text); // a page that comes neither from this machine nor over https has no clipboard
  document.body.append(box);
  box.select();
  document.execCommand("copy");
  box.remove();
}

/** Says something at the foot of the page, with a button for what can be done about it. It stays until it is closed. */
function notice(text, word = null, act = null) {
  const close = () => $("#notice").replaceChildren();
  $("#notice").replaceChildren(el("p", {}, text),
    word === null ? null : button(word, () => { close(); act(); }, { class: "small main" }),
    button("×", close, { "aria-label": "Close this notice" }));
}

/** A button that opens a menu; `items()` gives [words, action] of each line. */
function menuButton(words, items, more = {}) {
  return button(words, function () {
    const menu = $("#menu");
    menu.replaceChildren(...items().map(([line, act]) =>
      button(line, () => { menu.hidePopover(); act(); }, { role: "menuitem", class: null })));
    menu.showPopover();
    const at = this.getBoundingClientRect();
    const room = document.documentElement.clientWidth - menu.offsetWidth - 8;
    const below = at.bottom + 4 + menu.offsetHeight <= innerHeight;
    menu.style.left = `${Math.max(8, Math.min(at.left, room))}px`;
    menu.style.top = `${below ? at.bottom + 4 : Math.max(8, at.top - 4 - menu.offsetHeight)}px`;
    menu.firstChild.focus();
  }, { "aria-haspopup": "menu", ...more });
}

$("#menu").addEventListener("keydown", (event) => {
  const lines = [...event.currentTarget.children], i = lines.indexOf(document.activeElement), count = lines.length;
  const to = { ArrowDown: i + 1, ArrowUp: i - 1 + count, Home: 0, End: count - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  lines[to % count].focus();
});
