// Text files that go with a message: dropped in, pasted or chosen.

import { button, byId, element, notify } from "./dom.js";

const MAX_BYTES = 4 << 20; // of all files of a message

let files = [];

export const attachedFiles = () => files;

export function setFiles(value) {
  files = [...value];
  show();
}

async function add(list) {
  for (const file of list) {
    try {
      files.push({ name: file.name, text: await readText(file) });
    } catch (error) {
      notify(`${file.name} was not added: ${error.message}`);
    }
  }
  show();
}

async function readText(file) {
  const size = files.reduce((sum, other) => sum + other.text.length, file.size);
  if (size > MAX_BYTES) throw new Error("the files are larger than 4 MB together");
  const bytes = await file.arrayBuffer();
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new Error("it is not a text in UTF-8");
  }
  if (text.includes("\0")) throw new Error("it is not a text");
  return text;
}

function show() {
  byId("attached").replaceChildren(
    ...files.map((file, index) => {
      const remove = button("×", () => {
        files.splice(index, 1);
        show();
      });
      remove.setAttribute("aria-label", `Remove ${file.name}`);
      return element("span", { className: "chip" }, `${file.name} (${file.text.length} characters)`, remove);
    }),
  );
}

export function acceptFiles() {
  const input = byId("file-input");
  byId("attach").onclick = () => input.click();
  input.onchange = async () => {
    await add([...input.files]);
    input.value = "";
  };
  byId("prompt").addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    add([...event.clipboardData.files]);
  });
  acceptDrops();
}

function acceptDrops() {
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  window.addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  window.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  window.addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    document.body.classList.remove("dropping");
    add([...event.dataTransfer.files]);
  });
}
