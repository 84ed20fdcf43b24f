// Text files and images that go with a message: dropped in, pasted or chosen.

import { button, byId, element, notify } from "./dom.js";

const MAX_BYTES = 4 << 20; // of all text files of a message
const MAX_IMAGES = 40 << 20; // of all its images; the server takes bodies of 64 MiB
const IMAGES = ["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp"];

let files = [];
let seesImages = () => true; // whether the chosen model does

export const attachedFiles = () => files;

export function setFiles(value) {
  files = [...value];
  show();
}

async function add(list) {
  for (const file of list) {
    try {
      if (IMAGES.includes(file.type)) files.push({ name: file.name, image: await readImage(file) });
      else files.push({ name: file.name, text: await readText(file) });
    } catch (error) {
      notify(`${file.name} was not added: ${error.message}`);
    }
  }
  show();
}

const total = (field, more) => files.reduce((sum, file) => sum + (file[field]?.length ?? 0), more);

// As a data URL.
async function readImage(file) {
  if (!seesImages()) throw new Error("this model reads no images");
  if (total("image", (file.size * 4) / 3) > (MAX_IMAGES * 4) / 3) throw new Error("the images are larger than 40 MB together");
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("it cannot be read"));
    reader.readAsDataURL(file);
  });
}

async function readText(file) {
  if (total("text", file.size) > MAX_BYTES) throw new Error("the files are larger than 4 MB together");
  const bytes = await file.arrayBuffer();
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new Error("it is neither a text in UTF-8 nor an image that is read (JPEG, PNG, WebP, GIF, BMP)");
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
      const what = file.image ? [element("img", { src: file.image, alt: "" }), file.name]
        : [`${file.name} (${file.text.length} characters)`];
      return element("span", { className: "chip" }, ...what, remove);
    }),
  );
}

// `sees()`: whether the model that is chosen reads images.
export function acceptFiles(sees) {
  seesImages = sees;
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
