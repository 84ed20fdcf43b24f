"""Images on the page in a headless Chromium: dropped, pasted and chosen, sent, kept and exported.

Skipped where there is no Chromium.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from chromium import BINARY, Browser
from llama4_vision_models import llama4_vision, with_words
from page_in_browser import ask, choose_file, page, shared, start, stored, texts
from PIL import Image
from serving import Running, serving, wait_until
from tiny_model import write_model

pytestmark = pytest.mark.skipif(BINARY is None, reason="needs chromium")
__all__ = ["llama4_vision", "page", "shared"]


def png() -> bytes:
    file = BytesIO()
    Image.fromarray(np.random.default_rng(7).integers(0, 256, (60, 100, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


DATA = b64encode(png()).decode()
BYTES = f"Uint8Array.from(atob('{DATA}'), (letter) => letter.charCodeAt(0))"
FILE = f"new File([{BYTES}], 'a photo.png', {{type: 'image/png'}})"


@pytest.fixture(scope="module")
def running(llama4_vision: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("page")
    words, text = with_words(llama4_vision, folder), write_model(folder / "text.gguf", n_ctx=512)
    with serving(("words", words), ("text", text), n_ctx=512) as found:
        wait_until(lambda: found.get("/health").status_code == 200)
        yield found


def give(page: Browser, way: str) -> None:
    """An image by `drop`, `paste` or `choose`."""
    box, chosen = "document.querySelector('#prompt')", "document.querySelector('#file-input')"
    events = {
        "drop": "document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: list, bubbles: true}))",
        "paste": f"{box}.dispatchEvent(new ClipboardEvent('paste', {{clipboardData: list}}))",
        "choose": f"({chosen}.files = list.files, {chosen}.dispatchEvent(new Event('change')))",
    }
    page.run(f"(() => {{ const list = new DataTransfer(); list.items.add({FILE}); {events[way]}; }})()")


def brought_in(page: Browser, exported: str) -> None:
    """An exported conversation, opened."""
    choose_file(page, "#import-input", "export.json", exported)
    page.wait("document.querySelector('#conversations .title')")
    page.click("#conversations .title")


@pytest.mark.parametrize("way", ["drop", "paste", "choose"])
def test_an_image_goes_with_a_message(page: Browser, running: Running, way: str) -> None:
    give(page, way)
    page.wait("document.querySelector('.chip img')?.naturalWidth === 100")
    ask(page, "what is this?")
    assert page.run("document.querySelector('.message.user img').naturalWidth") == 100
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}"}}
    content = [part, {"type": "text", "text": "what is this?"}]
    question = [{"role": "user", "content": content}]
    whole = running.post("/v1/chat/completions", messages=question, temperature=0, max_tokens=8).json()
    (conversation,) = stored(page)
    kept = [m for m in conversation["messages"].values() if m["role"] == "assistant"]
    assert kept[0]["content"] == whole["choices"][0]["message"]["content"]
    assert kept[0]["stats"]["prompt"] == whole["usage"]["prompt_tokens"]


def test_images_are_kept_and_exported(page: Browser, running: Running) -> None:
    give(page, "drop")
    page.wait("document.querySelector('.chip img')")
    ask(page, "what is this?")
    exported = page.run(
        "Promise.all([import('/page/storage.js'), import('/page/exchange.js')])"
        ".then(([s, e]) => s.loadAll().then((all) => [e.toJson(all), e.toMarkdown(all[0])]))"
    )
    assert "*Image: a photo.png*" in exported[1]
    start(page, running.url)
    brought_in(page, exported[0])
    page.wait("document.querySelector('.message.user img')?.naturalWidth === 100")
    assert texts(page)[0] == "what is this?"
    hostile = json.loads(exported[0])
    for message in hostile["conversations"][0]["messages"].values():
        for file in message["files"]:
            file["image"] = "http://track.invalid/x.png"
    start(page, running.url)
    brought_in(page, json.dumps(hostile))
    page.wait("document.querySelector('.message.user')")
    assert page.run("document.querySelector('.message.user img')") is None


def test_a_model_that_reads_none(page: Browser) -> None:
    page.run("(document.querySelector('#model').value = 'text')")
    ask(page, "hello")  # now the page knows the model
    known = "(entry) => entry.name.includes('props?model=text') && entry.responseEnd"
    page.wait(f"performance.getEntriesByType('resource').some({known})")
    page.run("new Promise((done) => setTimeout(done, 300))")
    give(page, "drop")
    page.wait("document.querySelector('.notice')")
    assert "this model reads no images" in page.run("document.querySelector('.notice').textContent")
    assert page.run("document.querySelector('.chip')") is None
