// The page: holds the conversation that is open and joins its parts.

import { modelNames, onKeyNeeded, properties } from "./api.js";
import { Answer } from "./answer.js";
import {
  ROOT, addMessage, chooseSibling, newConversation, removeMessage, shownPath,
} from "./conversation.js";
import { byId, confirmed, notify } from "./dom.js";
import { acceptFiles, attachedFiles, setFiles } from "./files.js";
import { look, watchHealth } from "./health.js";
import { bindKeys } from "./keys.js";
import { MessageList } from "./messages.js";
import { bindSettings, showDefaults, showSettings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { load, openStorage, readSetting, save, watchOtherTabs, writeSetting } from "./storage.js";
import { bindTheme } from "./theme.js";

let conversation = null;
let editing = null; // the message that the prompt's text will stand beside
const running = new Map(); // conversation id -> Answer
const contexts = new Map(); // model -> n_ctx
const sighted = new Map(); // model -> whether it reads images

const list = new MessageList({ edit, regenerate, choose, remove: removeBranch });
const sidebar = new Sidebar({ open: openConversation, renamed });
const promptBox = byId("prompt");

// Conversations

async function openConversation(id) {
  const active = running.get(id)?.conversation;
  conversation = active ?? (id && (await loadWhole(id))) ?? freshConversation();
  endEdit();
  writeSetting("open", id);
  sidebar.select(conversation.id);
  showSettings(conversation.settings);
  if (conversation.model && [...byId("model").options].some(({ value }) => value === conversation.model)) {
    byId("model").value = conversation.model;
  }
  closeSidebarOnPhone();
  list.follow = true;
  draw();
  list.toEnd();
  promptBox.focus({ preventScroll: true });
}

// From storage; an answer that was running when the page was closed has ended.
async function loadWhole(id) {
  const found = await load(id);
  for (const message of Object.values(found?.messages ?? {})) {
    if (["waiting", "running"].includes(message.state)) message.state = "failed";
  }
  return found;
}

function freshConversation() {
  return newConversation(readSetting("sampling", {}), byId("model").value);
}

async function keep(which) {
  try {
    await save(which);
  } catch (error) {
    notify(`The conversation could not be kept: ${error.message}. Export it, or delete others.`);
  }
  sidebar.note(which);
}

function renamed({ id, title }) {
  if (conversation.id === id) conversation.title = title;
}

function draw() {
  const path = shownPath(conversation);
  list.show(conversation, path);
  document.title = conversation.title ? `${conversation.title} – pyllamacpu` : "pyllamacpu";
  const busy = running.has(conversation.id);
  byId("stop").hidden = !busy;
  byId("send").hidden = busy;
  drawMeter(path);
}

function drawMeter(path) {
  const last = path.findLast((message) => message.stats?.generated);
  const limit = contexts.get(last?.model ?? byId("model").value);
  const used = last?.stats.prompt ? last.stats.prompt + last.stats.generated : 0;
  byId("meter").hidden = !limit;
  if (!limit) return;
  byId("meter-bar").max = limit;
  byId("meter-bar").value = used;
  const rate = last?.stats.rate ? `${last.stats.rate.toFixed(1)} tokens/s · ` : "";
  byId("meter-text").textContent = `${rate}${used} of ${limit} tokens`;
  byId("meter").classList.toggle("full", used > 0.9 * limit);
}

// Asking and answering

function send() {
  const text = promptBox.value.trim();
  const files = attachedFiles();
  if ((!text && !files.length) || running.has(conversation.id)) return;
  const parent = editing ? editing.parent : (shownPath(conversation).at(-1)?.id ?? ROOT);
  const message = addMessage(conversation, parent, "user", text, files);
  promptBox.value = "";
  endEdit();
  fitPrompt();
  answer(message);
}

async function answer(question) {
  const own = conversation; // the person may open another one meanwhile
  own.model = byId("model").value || own.model;
  const message = addMessage(own, question.id, "assistant", "");
  message.model = own.model;
  message.state = "waiting";
  const current = new Answer(own, message, () => {
    if (conversation !== own) return;
    draw();
    list.grow(message);
  });
  running.set(own.id, current);
  writeSetting("open", own.id);
  sidebar.select(own.id);
  await keep(own);
  list.toEnd();
  const saving = setInterval(() => keep(own), 3000);
  await current.run();
  clearInterval(saving);
  running.delete(own.id);
  if (conversation === own) {
    draw();
    list.grow(message);
  }
  if (message.state === "failed") look();
  await keep(own);
  await current.countPrompt();
  await keep(own);
  if (conversation === own) draw();
  byId("announcement").textContent = message.error || "The answer is complete.";
  if (!byId("model").options.length) await learnModels(); // there was no key before
  if (!contexts.has(message.model)) learnContext(message.model);
}

function stop() {
  running.get(conversation.id)?.stop();
}

function edit(message) {
  if (running.has(conversation.id)) return;
  editing = message;
  promptBox.value = message.content;
  setFiles(message.files);
  byId("editing").hidden = false;
  fitPrompt();
  promptBox.focus();
}

function endEdit() {
  if (editing) promptBox.value = "";
  editing = null;
  setFiles([]);
  byId("editing").hidden = true;
}

function regenerate(message) {
  if (running.has(conversation.id)) return;
  const question = conversation.messages[message.parent];
  if (question) answer(question);
}

function choose(message, step) {
  if (running.has(conversation.id)) return;
  chooseSibling(conversation, message, step);
  draw();
  keep(conversation);
}

async function removeBranch(message) {
  if (running.has(conversation.id)) return;
  if (!(await confirmed("Delete this message and all that follows it?", "Delete"))) return;
  removeMessage(conversation, message);
  draw();
  keep(conversation);
}

function editLast() {
  const last = shownPath(conversation).findLast((message) => message.role === "user");
  if (last) edit(last);
}

function regenerateLast() {
  const last = shownPath(conversation).at(-1);
  if (last?.role === "assistant") regenerate(last);
  else if (last && !running.has(conversation.id)) answer(last);
}

// Another tab has changed the conversation that is open here.
async function showChange({ saved, removed }) {
  sidebar.refresh();
  if (running.has(conversation.id) || editing) return;
  if (removed === conversation.id) await openConversation(null);
  if (saved !== conversation.id) return;
  conversation = await loadWhole(saved);
  draw();
}

// The server

async function learnModels() {
  try {
    const names = await modelNames();
    const select = byId("model");
    const wanted = select.value || conversation?.model || readSetting("model", "");
    select.replaceChildren(...names.map((name) => new Option(name, name)));
    if (names.includes(wanted)) select.value = wanted;
  } catch (error) {
    if (error.status) notify(`The models could not be listed: ${error.message}`);
  }
}

async function learnContext(model) {
  try {
    const found = await properties(model);
    contexts.set(model, found.n_ctx);
    sighted.set(model, found.vision);
    showDefaults(found.params ?? {});
    drawMeter(shownPath(conversation));
  } catch {
    // The meter stays hidden; the banner says what is wrong with the server.
  }
}

async function serverChanged(state) {
  if (state === "gone") return;
  await learnModels();
  const select = byId("model");
  if (state === "ok" && select.selectedIndex === 0) learnContext(select.value); // the first is the default: loaded
}

function askKey(wrong) {
  const dialog = byId("key-dialog");
  byId("key-wrong").hidden = !wrong;
  dialog.returnValue = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const given = byId("key").value.trim();
      resolve(dialog.returnValue === "yes" && given ? { key: given, keep: byId("key-keep").checked } : null);
      byId("key").value = "";
    }, { once: true });
  });
}

// The page's own controls

function fitPrompt() {
  promptBox.style.height = "auto";
  const border = promptBox.offsetHeight - promptBox.clientHeight;
  promptBox.style.height = `${promptBox.scrollHeight + border}px`; // style.css has its limit
}

const PHONE = matchMedia("(max-width: 800px)"); // as in style.css
const isPhone = () => PHONE.matches;

function toggle(name, open = document.body.classList.contains(`no-${name}`)) {
  document.body.classList.toggle(`no-${name}`, !open);
  byId(name).inert = !open;
  byId(`toggle-${name}`).setAttribute("aria-expanded", String(open));
  if (!isPhone()) writeSetting(name, open);
}

function closeSidebarOnPhone() {
  if (isPhone()) toggle("sidebar", false);
}

function bindControls() {
  byId("composer").onsubmit = (event) => {
    event.preventDefault();
    send();
  };
  byId("stop").onclick = stop;
  byId("cancel-edit").onclick = endEdit;
  promptBox.addEventListener("input", fitPrompt);
  for (const name of ["sidebar", "drawer"]) {
    byId(`toggle-${name}`).onclick = () => toggle(name);
    byId(`close-${name}`).onclick = () => toggle(name, false);
  }
  const fitWidth = () => {
    for (const name of ["sidebar", "drawer"]) toggle(name, !isPhone() && readSetting(name, name === "sidebar"));
  };
  PHONE.addEventListener("change", fitWidth);
  fitWidth();
  byId("model").onchange = () => {
    writeSetting("model", byId("model").value);
    drawMeter(shownPath(conversation));
  };
  bindTheme(byId("theme"));
  bindSettings((settings) => {
    conversation.settings = settings;
    if (Object.keys(conversation.messages).length) keep(conversation);
  });
  acceptFiles(() => sighted.get(byId("model").value) ?? true);
  bindKeys({ send, stop, endEdit, editLast, regenerateLast, toggle, openNew: () => openConversation(null) });
}

async function start() {
  onKeyNeeded(askKey);
  bindControls();
  if (!(await openStorage())) notify("This browser keeps nothing: conversations are lost when the page is closed.");
  await openConversation(readSetting("open", null));
  await sidebar.refresh();
  watchOtherTabs(showChange);
  window.addEventListener("pagehide", () => running.forEach((answer) => save(answer.conversation)));
  watchHealth(serverChanged);
}

start();
