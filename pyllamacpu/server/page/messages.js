// Shows the messages of a conversation. Markdown is made when a message comes near the screen, so that
// hundreds of them open at once; style.css leaves out the layout of what is far away.

import { branches } from "./conversation.js";
import { button, byId, copyText, element, flash } from "./dom.js";
import { MarkdownView } from "./markdown.js";

const NEAR = "1200px 0px"; // around what is seen

export class MessageList {
  // actions: edit, regenerate, choose(message, step), remove; each takes a message.
  constructor(actions) {
    this.box = byId("messages");
    this.scroller = byId("scroller");
    this.actions = actions;
    this.shown = new Map(); // message id -> { article, body, view, key }
    this.follow = true;
    this.observer = new IntersectionObserver((entries) => this.#near(entries), {
      root: this.scroller, rootMargin: NEAR,
    });
    this.scroller.addEventListener("scroll", () => {
      const { scrollTop, scrollHeight, clientHeight } = this.scroller;
      this.follow = scrollHeight - scrollTop - clientHeight < 60;
      byId("to-end").hidden = this.follow;
    }, { passive: true });
    byId("to-end").onclick = () => this.toEnd();
  }

  // Shows `path`; what is there already stays.
  show(conversation, path) {
    const known = branches(conversation);
    const kept = new Map();
    const articles = path.map((message) => {
      const options = known.get(message.parent);
      const place = [options.indexOf(message) + 1, options.length];
      const key = `${place} ${message.state ?? ""} ${JSON.stringify(message.stats ?? "")}`;
      let entry = this.shown.get(message.id);
      if (!entry) entry = this.#make(message);
      else if (entry.message !== message) this.#renew(entry, message);
      if (entry.key !== key) this.#foot(entry, message, place);
      entry.key = key;
      kept.set(message.id, entry);
      return entry.article;
    });
    for (const [id, entry] of this.shown) if (!kept.has(id)) this.observer.unobserve(entry.article);
    this.shown = kept;
    this.#place(articles);
    byId("empty").hidden = path.length > 0;
  }

  // Puts articles in order without touching those that are in place.
  #place(articles) {
    const wanted = new Set(articles);
    for (const old of [...this.box.children]) if (!wanted.has(old)) old.remove();
    let at = this.box.firstElementChild;
    for (const article of articles) {
      if (article === at) at = at.nextElementSibling;
      else this.box.insertBefore(article, at);
    }
  }

  #make(message) {
    const body = element("div", { className: "body" });
    const article = element("article", { className: `message ${message.role}`, dataset: { id: message.id } });
    const name = message.role === "user" ? "You" : message.model || "Model";
    article.append(element("h2", { className: "who", textContent: name }));
    for (const file of message.files) {
      if (file.image) {
        article.append(element("img", { className: "picture", src: file.image, alt: file.name, title: file.name }));
        continue;
      }
      const text = element("pre", { textContent: file.text, tabIndex: 0 });
      article.append(element("details", { className: "file" }, element("summary", { textContent: file.name }), text));
    }
    article.append(body);
    const entry = { article, body, view: null, message, key: null };
    body.textContent = message.content; // until it is near
    body.classList.add("plain");
    this.observer.observe(article);
    return entry;
  }

  // The same message, read anew.
  #renew(entry, message) {
    const changed = entry.message.content !== message.content;
    entry.message = message;
    if (changed && entry.view) entry.view.update(message.content);
    else if (changed) entry.body.textContent = message.content;
  }

  #near(entries) {
    for (const { target, isIntersecting } of entries) {
      const entry = this.shown.get(target.dataset.id);
      if (!isIntersecting || !entry || entry.view) continue;
      this.observer.unobserve(target);
      this.#render(entry);
    }
    if (this.follow) this.toEnd();
  }

  #render(entry) {
    if (entry.message.role === "user") return; // what a person wrote is shown as written
    if (!entry.view) {
      entry.body.textContent = "";
      entry.body.classList.remove("plain");
      entry.view = new MarkdownView(entry.body);
    }
    entry.view.update(entry.message.content);
  }

  // The text of a message has grown.
  grow(message) {
    const entry = this.shown.get(message.id);
    if (!entry) return;
    this.#render(entry);
    if (this.follow) this.toEnd();
  }

  #foot(entry, message, [number, count]) {
    entry.article.querySelector(".foot")?.remove();
    entry.article.dataset.state = message.state ?? "";
    const foot = element("footer", { className: "foot" });
    if (count > 1) foot.append(this.#switch(message, number, count));
    const copy = button("Copy", () =>
      copyText(message.content).then(() => flash(copy, "Copied"), () => flash(copy, "Failed")));
    foot.append(copy);
    if (message.role === "user") foot.append(button("Edit", () => this.actions.edit(message)));
    else foot.append(button("Regenerate", () => this.actions.regenerate(message)));
    foot.append(button("Delete", () => this.actions.remove(message)));
    foot.append(element("span", { className: "stats", textContent: describe(message) }));
    entry.article.append(foot);
  }

  #switch(message, number, count) {
    const step = (label, by, name) =>
      button(label, () => this.actions.choose(message, by), {
        "aria-label": name, disabled: number + by < 1 || number + by > count,
      });
    return element("span", { className: "branch" }, step("‹", -1, "Branch before"), `${number} / ${count}`,
      step("›", 1, "Next branch"));
  }

  toEnd() {
    this.follow = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }
}

// What is said below a message: its speed, and how it ended.
function describe({ stats, state, error }) {
  const ends = {
    waiting: "waiting …", running: "", stopped: "stopped", length: "cut off at the token limit",
    loop: "ended: it repeated itself", content_filter: "blocked by the guard or the shield", failed: "broken off",
  };
  const parts = [];
  if (stats?.generated) parts.push(`${stats.generated} tokens`);
  if (stats?.rate) parts.push(`${stats.rate.toFixed(1)} tokens/s`);
  if (ends[state]) parts.push(state === "failed" && error ? error : ends[state]);
  return parts.join(" · ");
}
