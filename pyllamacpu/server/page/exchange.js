// Conversations as files: JSON to keep and bring back, Markdown to read.

import { ROOT, newId, promptText, shownPath } from "./conversation.js";

const FORMAT = "pyllamacpu-conversations";
const VERSION = 1;
const ROLES = new Set(["user", "assistant"]);

export function toJson(conversations) {
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations }, null, 1);
}

export function toMarkdown(conversation) {
  const parts = [`# ${conversation.title || "Conversation"}`];
  if (conversation.settings.system) parts.push(`**System**\n\n${conversation.settings.system}`);
  for (const message of shownPath(conversation)) {
    const images = message.files.filter((file) => file.image).map((file) => `*Image: ${file.name}*`);
    const text = [...images, promptText(message)].filter(Boolean).join("\n\n");
    parts.push(`**${message.role === "user" ? "You" : message.model || "Model"}**\n\n${text}`);
  }
  return `${parts.join("\n\n")}\n`;
}

export function fileName(conversation, ending) {
  const name = conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 50);
  return `${name || "conversation"}.${ending}`;
}

// The conversations of an exported file, checked and under new ids. Throws an Error that says what is wrong.
export function fromJson(text) {
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    throw new Error("it is not JSON");
  }
  if (data?.format !== FORMAT) throw new Error("it is not an export of conversations from this page");
  if (data.version !== VERSION) throw new Error(`its version ${data.version} is not known here`);
  if (!Array.isArray(data.conversations)) throw new Error("it holds no list of conversations");
  return data.conversations.map(readConversation);
}

const asText = (value) => (typeof value === "string" ? value : "");
const asTime = (value) => (Number.isFinite(value) ? value : Date.now());
const IMAGE = /^data:image\/(jpeg|png|webp|gif|bmp);base64,[A-Za-z0-9+/]+=*$/;
const asObject = (value) => (value !== null && typeof value === "object" && !Array.isArray(value) ? value : {});

function readConversation(value) {
  const given = asObject(value);
  const messages = {};
  for (const message of Object.values(asObject(given.messages))) {
    const read = readMessage(message);
    messages[read.id] = read;
  }
  checkTree(messages);
  const chosen = {};
  for (const [parent, child] of Object.entries(asObject(given.chosen))) {
    if (Object.hasOwn(messages, child) && messages[child].parent === parent) chosen[parent] = child;
  }
  return {
    id: newId(), title: asText(given.title), created: asTime(given.created), updated: asTime(given.updated),
    model: asText(given.model), settings: readSettings(given.settings), messages, chosen,
  };
}

function readSettings(value) {
  const known = Object.entries(asObject(value)).filter(([, item]) => ["string", "number"].includes(typeof item));
  return Object.fromEntries(known);
}

function readMessage(value) {
  const given = asObject(value);
  if (!/^[0-9a-f]{24}$/.test(given.id)) throw new Error("a message has no id");
  if (!ROLES.has(given.role)) throw new Error(`a message has the role ${String(given.role).slice(0, 20)}`);
  if (typeof given.content !== "string") throw new Error("a message has no text");
  const files = Array.isArray(given.files) ? given.files : [];
  return {
    id: given.id, parent: asText(given.parent), role: given.role, content: given.content,
    files: files.map(readFile),
    created: asTime(given.created), model: asText(given.model), stats: readStats(given.stats),
    state: asText(given.state),
  };
}

function readFile(file) {
  const name = asText(file?.name);
  return IMAGE.test(asText(file?.image)) ? { name, image: file.image } : { name, text: asText(file?.text) };
}

function readStats(value) {
  const numbers = Object.entries(asObject(value)).filter(([, item]) => Number.isFinite(item));
  return Object.fromEntries(numbers);
}

// Every message leads up to the root: no parent is missing, none leads in a circle.
function checkTree(messages) {
  const good = new Set([ROOT]);
  for (const message of Object.values(messages)) {
    const trail = new Set();
    let at = message.id;
    while (!good.has(at)) {
      if (trail.has(at) || !Object.hasOwn(messages, at)) throw new Error("its messages do not hang together");
      trail.add(at);
      at = messages[at].parent;
    }
    for (const id of trail) good.add(id);
  }
}
