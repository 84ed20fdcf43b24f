// A conversation is a tree of messages: editing and regenerating add branches beside what was there.
//
// { id, title, created, updated, model, settings, messages: { id: message }, chosen: { parent: child } }
// message: { id, parent, role, content, files: [{ name, text } or { name, image }], created, model?, stats?, state? }
// The parent of the first message is ROOT. `chosen` says which branch is shown below a message.

export const ROOT = "root";
const TITLE_LENGTH = 60;

export const newId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export function newConversation(settings, model) {
  const now = Date.now();
  return {
    id: newId(), title: "", created: now, updated: now, model,
    settings: { ...settings }, messages: {}, chosen: {},
  };
}

export function addMessage(conversation, parent, role, content, files = []) {
  const message = { id: newId(), parent, role, content, files, created: Date.now() };
  conversation.messages[message.id] = message;
  conversation.chosen[parent] = message.id;
  conversation.updated = message.created;
  if (!conversation.title && role === "user") conversation.title = makeTitle(content || files[0]?.name || "");
  return message;
}

function makeTitle(text) {
  const line = text.trim().split("\n", 1)[0].replace(/\s+/g, " ");
  return line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH - 1)}…` : line;
}

// The messages with the same parent, oldest first.
export function siblings(conversation, message) {
  return children(conversation, message.parent);
}

function children(conversation, parent) {
  return Object.values(conversation.messages)
    .filter((other) => other.parent === parent)
    .sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1));
}

// The parents that have several branches: id -> their children, oldest first. One pass over all messages.
export function branches(conversation) {
  const found = new Map();
  for (const message of Object.values(conversation.messages)) {
    if (!found.has(message.parent)) found.set(message.parent, []);
    found.get(message.parent).push(message);
  }
  for (const list of found.values()) list.sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1));
  return found;
}

// The branch that is shown, from the first message to the last.
export function shownPath(conversation) {
  const path = [];
  const known = branches(conversation);
  let parent = ROOT;
  while (known.has(parent)) {
    const options = known.get(parent);
    const next = options.find((message) => message.id === conversation.chosen[parent]) ?? options.at(-1);
    path.push(next);
    parent = next.id;
  }
  return path;
}

// The messages that lead to `id`, itself included.
export function pathTo(conversation, id) {
  const path = [];
  for (let at = conversation.messages[id]; at; at = conversation.messages[at.parent]) path.unshift(at);
  return path;
}

export function chooseSibling(conversation, message, step) {
  const all = siblings(conversation, message);
  const index = all.indexOf(message) + step;
  if (index >= 0 && index < all.length) conversation.chosen[message.parent] = all[index].id;
}

// Removes a message and all that follows it.
export function removeMessage(conversation, message) {
  for (const child of children(conversation, message.id)) removeMessage(conversation, child);
  delete conversation.messages[message.id];
  delete conversation.chosen[message.id];
  if (conversation.chosen[message.parent] === message.id) delete conversation.chosen[message.parent];
}

// A fence that is longer than every one in the text.
function fenced(text) {
  const longest = Math.max(2, ...(text.match(/`+/g) ?? []).map((run) => run.length));
  const fence = "`".repeat(longest + 1);
  return `${fence}\n${text.endsWith("\n") ? text : `${text}\n`}${fence}`;
}

// What the model reads of a message beside its images: its text files, then its text.
export function promptText(message) {
  const files = message.files.filter((file) => !file.image);
  const texts = files.map((file) => `File ${file.name}:\n${fenced(file.text)}`);
  return [...texts, message.content].filter(Boolean).join("\n\n");
}

// The content of a message in a request: its images (data URLs) stand before its text.
function requestContent(message) {
  const text = promptText(message);
  const images = message.files.filter((file) => file.image);
  if (!images.length) return text;
  const parts = images.map((file) => ({ type: "image_url", image_url: { url: file.image } }));
  return text ? [...parts, { type: "text", text }] : parts;
}

// The messages of a request. Answers that stayed empty are left out, with nothing in their place.
export function requestMessages(conversation, path) {
  const system = conversation.settings.system?.trim();
  const messages = path
    .map((message) => ({ role: message.role, content: requestContent(message) }))
    .filter((message) => message.content !== "");
  return system ? [{ role: "system", content: system }, ...messages] : messages;
}
