// The drawer: the system prompt and sampling of a conversation. An empty field is the server's default.

import { byId } from "./dom.js";
import { writeSetting } from "./storage.js";

const NUMBERS = [
  "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "seed",
  "max_tokens",
];

const fields = () => [...byId("settings").elements].filter((field) => field.name);

// Shows the settings of a conversation; `changed(settings)` is called for edits that are valid.
export function bindSettings(changed) {
  byId("settings").addEventListener("input", () => {
    if (!byId("settings").checkValidity()) return;
    const settings = readForm();
    writeSetting("sampling", { ...settings, system: undefined });
    changed(settings);
  });
  byId("settings").addEventListener("change", () => byId("settings").reportValidity());
}

function readForm() {
  const filled = fields().filter((field) => field.value !== "");
  return Object.fromEntries(
    filled.map((field) => [field.name, NUMBERS.includes(field.name) ? Number(field.value) : field.value]),
  );
}

export function showSettings(settings) {
  for (const field of fields()) field.value = settings[field.name] ?? "";
}

// The server's own defaults, as placeholders.
export function showDefaults(params) {
  for (const field of fields()) {
    const value = params[field.name];
    if (NUMBERS.includes(field.name) && typeof value === "number") {
      field.placeholder = field.name === "seed" && value < 0 ? "random" : String(value);
    }
  }
}

// The fields of a request.
export function samplingFields(settings) {
  const found = {};
  for (const name of NUMBERS) if (typeof settings[name] === "number") found[name] = settings[name];
  const stop = (settings.stop ?? "").split("\n").filter((line) => line !== "");
  if (stop.length) found.stop = stop;
  return found;
}
