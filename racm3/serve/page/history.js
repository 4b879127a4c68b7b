// History: the outputs of this browser, kept in it across reloads (IndexedDB), and the few choices that last.
"use strict";

const MOST_KEPT = 1000; // outputs; the oldest go
const STORES = ["outputs", "cards"]; // whole outputs as text, see pack(); and of each what a small picture of it needs

const kept = { // by id: the later the higher
  opened: null,

  open() {
    kept.opened ??= new Promise((resolve, reject) => {
      const asked = indexedDB.open("racm3", 1);
      asked.onupgradeneeded = () => {
        asked.result.createObjectStore("outputs", { autoIncrement: true });
        asked.result.createObjectStore("cards");
        asked.result.createObjectStore("choices");
      };
      asked.onsuccess = () => resolve(asked.result);
      asked.onerror = () => reject(asked.error);
    });
    return kept.opened;
  },

  /** What the last thing that `work(stores)` asks for gives, once all is done. */
  async with(names, mode, work) {
    const database = await kept.open();
    return new Promise((resolve, reject) => {
      const transaction = database.transaction(names, mode);
      const asked = work(...names.map((name) => transaction.objectStore(name)));
      transaction.oncomplete = () => resolve(asked?.result);
      transaction.onabort = transaction.onerror = () => reject(transaction.error);
    });
  },

  /** Keeps an output, new or changed, and gives it its id. A browser that keeps nothing is no reason to fail. */
  async put(record) {
    const { id, ...rest } = record, text = pack(rest);
    try {
      record.id = await kept.with(["outputs"], "readwrite", (outputs) => (id ? outputs.put(text, id) : outputs.add(text)));
      await kept.with(["cards"], "readwrite", (cards) => cards.put(cardOf(record), record.id));
      const ids = await kept.with(["cards"], "readonly", (cards) => cards.getAllKeys());
      for (const old of ids.slice(0, Math.max(0, ids.length - MOST_KEPT))) await kept.delete(old);
    } catch (error) {
      notice(`This browser does not keep outputs: ${error?.message ?? "it has no room"}.`);
      record.id ??= -Date.now();
    }
    return record;
  },

  /** The cards of all outputs, newest first. */
  async cards() {
    try {
      const [cards, ids] = await Promise.all([
        kept.with(["cards"], "readonly", (store) => store.getAll()),
        kept.with(["cards"], "readonly", (store) => store.getAllKeys()),
      ]);
      return cards.map((card, i) => ({ ...card, id: ids[i] })).reverse();
    } catch {
      return []; // a private window of some browsers
    }
  },

  async get(id) {
    return { ...unpack(await kept.with(["outputs"], "readonly", (outputs) => outputs.get(id))), id };
  },

  delete: (id) => kept.with(STORES, "readwrite", (...stores) => { for (const store of stores) store.delete(id); }),
  choose: (name, value) => kept.with(["choices"], "readwrite", (store) => store.put(value, name)).catch(() => {}),
  chosen: (name) => kept.with(["choices"], "readonly", (store) => store.get(name)).catch(() => undefined),
};

/** What a small picture of an output shows. */
const cardOf = ({ kind, title, at, answer, given }) => ({
  kind, title, at, words: answer.words ?? null,
  picture: answer.picture ? `data:image/png;base64,${answer.picture}` : given?.url ?? null,
});
