// Markdown to elements. A model's text is untrusted: DOMPurify keeps harmless elements only, and images,
// which would ask other servers, become links.

import { Lexer, Parser, Renderer } from "./vendor/marked.esm.js";
import "./vendor/purify.min.js";
import { button, copyText, element, flash } from "./dom.js";

const OPTIONS = { gfm: true, breaks: true };
const CLEAN = {
  RETURN_DOM_FRAGMENT: true,
  ALLOWED_TAGS: [
    "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p",
    "pre", "strong", "sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul",
  ],
  ALLOWED_ATTR: ["align", "class", "href", "start", "title"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
};

const escapeHtml = (text) =>
  text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);

class SafeRenderer extends Renderer {
  html({ text }) {
    return escapeHtml(text); // tags in a model's text are shown, not obeyed
  }

  image({ href, text }) {
    return `<a href="${escapeHtml(href)}">${escapeHtml(text || href)}</a>`;
  }

  checkbox({ checked }) {
    return checked ? "☑ " : "☐ ";
  }
}

function render(tokens) {
  const parser = new Parser({ ...OPTIONS, renderer: new SafeRenderer() });
  const fragment = globalThis.DOMPurify.sanitize(parser.parse(tokens), CLEAN);
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = element("div", { className: "table", tabIndex: 0 });
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const code of fragment.querySelectorAll("pre > code")) frameCode(code);
  return fragment;
}

function frameCode(code) {
  const block = code.parentElement;
  const language = /language-([^\s]+)/.exec(code.className)?.[1] ?? "text";
  const copy = button("Copy", () =>
    copyText(code.textContent).then(() => flash(copy, "Copied"), () => flash(copy, "Failed")),
  );
  copy.setAttribute("aria-label", "Copy the code");
  block.tabIndex = 0;
  const head = element("div", { className: "code-head" }, element("span", { textContent: language }), copy);
  const frame = element("div", { className: "code" }, head);
  block.replaceWith(frame);
  frame.append(block);
}

// A Markdown text inside `target` that may grow: only the blocks that changed are made again.
export class MarkdownView {
  constructor(target) {
    this.target = target;
    this.blocks = []; // [{ raw, box }]
  }

  update(text) {
    const tokens = new Lexer(OPTIONS).lex(text);
    let same = 0;
    while (same < this.blocks.length && same < tokens.length && this.blocks[same].raw === tokens[same].raw) same++;
    for (const { box } of this.blocks.splice(same)) box.remove();
    for (const token of tokens.slice(same)) {
      const box = element("div", { className: "block" }, render([token]));
      this.blocks.push({ raw: token.raw, box });
      this.target.append(box);
    }
  }
}
