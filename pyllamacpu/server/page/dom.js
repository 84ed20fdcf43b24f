// Small helpers for building the page's elements.

// An element: `properties` are its fields, or attributes where a name has a dash.
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) made.setAttribute(name, value);
    else if (name === "dataset") Object.assign(made.dataset, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function button(label, onclick, properties = {}) {
  return element("button", { type: "button", textContent: label, onclick, ...properties });
}

export const byId = (id) => document.getElementById(id);

// Copies a text, also where the page has no clipboard (plain http on a name that is not localhost).
export async function copyText(text) {
  if (navigator.clipboard && window.isSecureContext) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = element("textarea", { value: text, className: "off-screen" });
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  if (!copied) throw new Error("the browser does not let this page copy");
}

// Shows what happened on a button for a moment.
export function flash(target, label) {
  const before = target.dataset.label ?? target.textContent;
  target.dataset.label = before;
  target.textContent = label;
  setTimeout(() => {
    target.textContent = before;
  }, 1500);
}

// A short message at the bottom; errors are read out at once.
export function notify(text) {
  const notice = element("div", { className: "notice", textContent: text, role: "alert" });
  notice.onclick = () => notice.remove();
  byId("notices").append(notice);
  setTimeout(() => notice.remove(), 8000);
}

// Asks in a dialog; the promise is true when the person agrees.
export function confirmed(question, action) {
  const dialog = byId("confirm");
  byId("confirm-question").textContent = question;
  byId("confirm-yes").textContent = action;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

// Offers a text as a file.
export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
