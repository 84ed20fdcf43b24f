// The list of conversations: open, rename, export, delete; import and export of all.

import { button, byId, confirmed, download, element, notify } from "./dom.js";
import { fileName, fromJson, toJson, toMarkdown } from "./exchange.js";
import { loadAll, remove, save } from "./storage.js";

export class Sidebar {
  // actions: open(id or null).
  constructor(actions) {
    this.actions = actions;
    this.current = null;
    this.entries = []; // { id, title, updated }, newest first
    byId("new-chat").onclick = () => actions.open(null);
    byId("filter").oninput = () => this.draw();
    byId("export-all").onclick = async () =>
      download("conversations.json", toJson(await loadAll()), "application/json");
    byId("delete-all").onclick = () => this.#deleteAll();
    byId("import").onclick = () => byId("import-input").click();
    byId("import-input").onchange = () => this.#import();
  }

  async refresh() {
    const all = await loadAll();
    this.entries = all.map(({ id, title, updated }) => ({ id, title, updated }));
    this.draw();
  }

  // A conversation was saved: its entry alone is changed.
  note({ id, title, updated }) {
    this.entries = [{ id, title, updated }, ...this.entries.filter((entry) => entry.id !== id)];
    this.draw();
  }

  select(id) {
    this.current = id;
    this.draw();
  }

  draw() {
    this.entries.sort((a, b) => b.updated - a.updated);
    const wanted = byId("filter").value.trim().toLowerCase();
    const shown = this.entries.filter((entry) => entry.title.toLowerCase().includes(wanted));
    byId("conversations").replaceChildren(...shown.map((entry) => this.#row(entry)));
  }

  #row(entry) {
    const open = button(entry.title || "Conversation", () => this.actions.open(entry.id), { className: "title" });
    if (entry.id === this.current) open.setAttribute("aria-current", "true");
    const menu = element("select", { "aria-label": `More for ${entry.title}`, title: "More" });
    menu.append(new Option("⋯", ""));
    for (const [value, label] of Object.entries(CHOICES)) menu.append(new Option(label, value));
    menu.onchange = async () => {
      const choice = menu.value;
      menu.value = "";
      await this.#act(choice, entry.id);
    };
    return element("li", {}, open, menu);
  }

  async #act(choice, id) {
    const conversation = (await loadAll()).find((other) => other.id === id);
    if (!conversation) return;
    if (choice === "json") {
      download(fileName(conversation, "json"), toJson([conversation]), "application/json");
    } else if (choice === "markdown") {
      download(fileName(conversation, "md"), toMarkdown(conversation), "text/markdown");
    } else if (choice === "rename") {
      await this.#rename(conversation);
    } else if (choice === "delete" && (await confirmed(`Delete “${conversation.title}”?`, "Delete"))) {
      await remove(id);
      if (id === this.current) this.actions.open(null);
      await this.refresh();
    }
  }

  async #rename(conversation) {
    const title = prompt("Title", conversation.title)?.trim();
    if (!title) return;
    conversation.title = title;
    await save(conversation);
    this.note(conversation);
    this.actions.renamed(conversation);
  }

  async #deleteAll() {
    const count = this.entries.length;
    if (!count || !(await confirmed(`Delete all ${count} conversations? This cannot be undone.`, "Delete all"))) return;
    for (const { id } of this.entries) await remove(id);
    this.actions.open(null);
    await this.refresh();
  }

  async #import() {
    const input = byId("import-input");
    for (const file of input.files) {
      try {
        const conversations = fromJson(await file.text());
        for (const conversation of conversations) await save(conversation);
        notify(`${file.name}: ${conversations.length} conversations were imported`);
      } catch (error) {
        notify(`${file.name} was not imported: ${error.message}`);
      }
    }
    input.value = "";
    await this.refresh();
  }
}

const CHOICES = { rename: "Rename", json: "Export (JSON)", markdown: "Export (Markdown)", delete: "Delete" };
