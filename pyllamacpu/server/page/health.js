// Watches whether the server is there, and says so in the banner.

import { health } from "./api.js";
import { byId } from "./dom.js";

const WELL = 15_000; // ms between two looks
const UNWELL = 1_500;

const WORDS = {
  "loading model": "The model is loading. You can write already: the answer begins when it is ready.",
  "shutting down": "The server is shutting down.",
  "model failed to load": "The model could not be loaded; the server's log says why.",
  "engine stuck": "The server has not answered for a while.",
  gone: "The server cannot be reached. Your conversations are kept in this browser; trying again …",
};

let state = "unknown";
let timer = 0;
let changed = () => {};

export function watchHealth(onChange) {
  changed = onChange;
  document.addEventListener("visibilitychange", () => document.hidden || look());
  window.addEventListener("online", look);
  return look();
}

// Looks now, for example because a request failed.
export async function look() {
  clearTimeout(timer);
  const found = await health();
  clearTimeout(timer);
  timer = setTimeout(look, found === "ok" ? WELL : UNWELL);
  if (found === state) return;
  const before = state;
  state = found;
  const banner = byId("banner");
  banner.hidden = found === "ok";
  banner.textContent = WORDS[found] ?? `The server says: ${found}`;
  banner.dataset.state = found;
  changed(found, before);
}
