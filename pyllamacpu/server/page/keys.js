// The keyboard: Enter sends, Esc stops, and the shortcuts that the help lists.

import { byId } from "./dom.js";

export function bindKeys(actions) {
  const promptBox = byId("prompt");
  promptBox.addEventListener("keydown", (event) => {
    if (event.isComposing) return; // an input method is choosing a character
    if (event.key === "Enter" && !event.shiftKey && !event.altKey) {
      event.preventDefault();
      actions.send();
    } else if (event.key === "ArrowUp" && promptBox.value === "") {
      event.preventDefault();
      actions.editLast();
    }
  });
  const shortcuts = {
    KeyO: actions.openNew,
    KeyS: () => actions.toggle("sidebar"),
    KeyP: () => actions.toggle("drawer"),
    KeyR: actions.regenerateLast,
    KeyH: () => byId("help").showModal(),
    KeyI: () => promptBox.focus(),
  };
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]") || event.isComposing) return;
    if (event.key === "Escape") {
      actions.stop();
      actions.endEdit();
    } else if (event.altKey && event.shiftKey && shortcuts[event.code]) {
      event.preventDefault();
      shortcuts[event.code]();
    }
  });
  byId("show-help").onclick = () => byId("help").showModal();
}
