// Dark, light, or as the system has it. Loaded before the page is shown.

import { readSetting, writeSetting } from "./storage.js";

const THEMES = ["auto", "light", "dark"];

let theme = readSetting("theme", "auto");

function apply() {
  if (!THEMES.includes(theme)) theme = "auto";
  document.documentElement.dataset.theme = theme;
}

export function bindTheme(control) {
  control.value = theme;
  control.onchange = () => {
    theme = control.value;
    apply();
    writeSetting("theme", theme);
  };
}

apply();
