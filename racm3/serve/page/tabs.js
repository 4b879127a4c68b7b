// Tabs: the address names the one that is shown, and may carry a request: #draw?prompt=a+fox&seed=7.
"use strict";

const tabs = $$("[role=tab]");
const tabNames = tabs.map((tab) => tab.getAttribute("aria-controls"));
const onShown = {}; // what a panel does when it is shown
const onLink = {}; // what it does with a request in the address, given as URLSearchParams

/** Goes to a tab; the back button comes back. */
function showTab(name) {
  if (shownTab() !== name) history.pushState(null, "", `#${name}`);
  route();
}

const shownTab = () => location.hash.slice(1).split("?")[0];

/** Shows what the address says. */
function route() {
  const [name, query] = location.hash.slice(1).split("?");
  const chosen = tabNames.includes(name) ? name : "draw";
  if (chosen !== name) history.replaceState(history.state, "", "#draw");
  for (const tab of tabs) {
    const own = tab.getAttribute("aria-controls"), is = own === chosen;
    tab.setAttribute("aria-selected", is);
    tab.tabIndex = is ? 0 : -1;
    $(`#${own}`).hidden = !is;
  }
  document.title = `${$(`#tab-${chosen}`).textContent} · racm3`;
  if (query) onLink[chosen]?.(new URLSearchParams(query));
  onShown[chosen]?.();
}

window.addEventListener("popstate", () => { if (!history.state?.viewer) route(); });

for (const [i, tab] of tabs.entries()) {
  tab.addEventListener("click", () => showTab(tab.getAttribute("aria-controls")));
  tab.addEventListener("keydown", (event) => {
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1 + tabs.length, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    tabs[to % tabs.length].focus();
    tabs[to % tabs.length].click();
  });
}
