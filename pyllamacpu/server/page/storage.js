// Conversations in the browser's own database (IndexedDB); settings in localStorage. Nothing leaves the browser.

const NAME = "pyllamacpu";
const STORE = "conversations";

let database = null; // null: the browser keeps nothing (a private window), so memory does
const memory = new Map();
const channel = "BroadcastChannel" in window ? new BroadcastChannel(NAME) : null;

function finished(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

// Opens the database; false when conversations will be lost with the page.
export async function openStorage() {
  try {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    database = await finished(request);
    return true;
  } catch {
    return false;
  }
}

function run(mode, act) {
  const transaction = database.transaction(STORE, mode);
  const done = finished(act(transaction.objectStore(STORE)));
  if (mode === "readonly") return done;
  return new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = () => reject(transaction.error ?? new Error("the browser's storage is full"));
    done.catch(reject);
  });
}

export async function loadAll() {
  return database ? run("readonly", (store) => store.getAll()) : [...memory.values()];
}

export async function load(id) {
  return database ? run("readonly", (store) => store.get(id)) : memory.get(id);
}

export async function save(conversation) {
  if (database) await run("readwrite", (store) => store.put(conversation));
  else memory.set(conversation.id, structuredClone(conversation));
  channel?.postMessage({ saved: conversation.id });
}

export async function remove(id) {
  if (database) await run("readwrite", (store) => store.delete(id));
  else memory.delete(id);
  channel?.postMessage({ removed: id });
}

// Calls `changed({ saved } or { removed })` for what other tabs do.
export function watchOtherTabs(changed) {
  if (channel) channel.onmessage = (event) => changed(event.data);
}

export function readSetting(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(`${NAME}.${name}`)) ?? fallback;
  } catch {
    return fallback;
  }
}

export function writeSetting(name, value) {
  try {
    localStorage.setItem(`${NAME}.${name}`, JSON.stringify(value));
  } catch {
    // A browser that keeps nothing: the setting lasts as long as the page.
  }
}
