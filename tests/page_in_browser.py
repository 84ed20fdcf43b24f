"""What tests of the page share: the browser with the page open, and what a person does there.

`page` needs a fixture `running`, the server, in the module that uses it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from chromium import Browser, chromium
from serving import Running

LAST = "document.querySelector('.message:last-child')"
ENDS = ["", "length", "loop", "content_filter"]
ANSWERED = f"{LAST}?.classList.contains('assistant') && {ENDS}.includes({LAST}.dataset.state)"


@pytest.fixture(scope="module")
def shared() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(shared: Browser, running: Running) -> Iterator[Browser]:
    """The page, as on a first visit. Whatever a test does, it asks no other server and breaks no rule."""
    start(shared, running.url)
    yield shared
    assert shared.errors == []
    assert all(url.startswith((running.url, "data:", "blob:")) for url in shared.requests)


def start(browser: Browser, url: str, **settings: Any) -> None:
    """Opens the page with an empty storage, and short greedy answers."""
    browser.open(f"{url}/page/style.css")  # the same origin, without the page's own connections
    browser.run("new Promise((done) => { indexedDB.deleteDatabase('pyllamacpu').onsuccess = () => done() })")
    sampling = json.dumps(json.dumps({"temperature": 0, "max_tokens": 8, **settings}))
    browser.run(f"localStorage.clear(), localStorage.setItem('pyllamacpu.sampling', {sampling})")
    browser.errors.clear()
    browser.requests.clear()
    browser.size(1280, 800)
    browser.open(f"{url}/")
    browser.wait("!document.querySelector('#meter').hidden || !document.querySelector('#banner').hidden")


def say(page: Browser, text: str) -> None:
    page.run("document.querySelector('#prompt').focus()")
    page.type(text)
    page.press("Enter")


def texts(page: Browser) -> list[str]:
    found: list[str] = page.run("[...document.querySelectorAll('.message .body')].map((b) => b.textContent)")
    return found


def ask(page: Browser, text: str) -> None:
    count = page.run("document.querySelectorAll('.message').length")
    say(page, text)
    page.wait(f"document.querySelectorAll('.message').length > {count} && {ANSWERED}")


def stored(page: Browser) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = page.run("import('/page/storage.js').then((storage) => storage.loadAll())")
    return found


def choose_file(page: Browser, selector: str, name: str, text: str) -> None:
    page.run(f"""(() => {{
        const list = new DataTransfer();
        list.items.add(new File([{json.dumps(text)}], {json.dumps(name)}));
        const input = document.querySelector({json.dumps(selector)});
        input.files = list.files;
        input.dispatchEvent(new Event('change'));
    }})()""")
