"""The page in a headless Chromium, on a server with a tiny model: what a person does, and bad weather.

Skipped where there is no Chromium.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import BINARY, Browser
from page_in_browser import ANSWERED, LAST, ask, choose_file, page, say, shared, start, stored, texts
from serving import Running, serving, wait_until
from tiny_model import byte, write_model

from pyllamacpu.engine.scheduler import Scheduler
from pyllamacpu.safety import Verdict, shield
from pyllamacpu.safety.shield import ShieldOptions
from pyllamacpu.server.access import AccessOptions
from pyllamacpu.server.models import ModelPool

pytestmark = pytest.mark.skipif(BINARY is None, reason="needs chromium")
__all__ = ["page", "shared"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf", n_ctx=8192)


@pytest.fixture(scope="module")
def running(path: Path) -> Iterator[Running]:
    with serving(("tiny", path), ("second", path), n_ctx=8192) as found:
        wait_until(lambda: found.get("/health").status_code == 200)
        yield found


def test_a_conversation_is_answered_and_kept(page: Browser, running: Running) -> None:
    names = page.run("[...document.querySelector('#model').options].map((o) => o.value)")
    assert names[:2] == ["tiny", "second"]  # then what the store has
    ask(page, "hello <b>there</b>")
    first = texts(page)
    assert first[0] == "hello <b>there</b>"
    whole = running.post(
        "/v1/chat/completions",
        messages=[{"role": "user", "content": "hello <b>there</b>"}],
        temperature=0,
        max_tokens=8,
    ).json()
    (conversation,) = stored(page)
    kept = [m for m in conversation["messages"].values() if m["role"] == "assistant"]
    assert [m["content"] for m in kept] == [whole["choices"][0]["message"]["content"]]
    assert kept[0]["stats"]["generated"] == whole["usage"]["completion_tokens"]
    used = whole["usage"]["total_tokens"]
    assert f"{used} of 8192 tokens" in page.run("document.querySelector('#meter-text').textContent")
    page.open(f"{running.url}/")
    page.wait("document.querySelectorAll('.message').length === 2")
    assert texts(page)[0] == first[0]


def test_branches_by_editing_and_regenerating(page: Browser) -> None:
    ask(page, "one")
    page.click(".message.assistant .foot button:nth-of-type(2)")  # Regenerate
    page.wait(f"document.querySelector('.branch')?.textContent.includes('2 / 2') && {ANSWERED}")
    page.run("document.querySelector('#prompt').focus()")
    page.press("ArrowUp")
    assert page.run("document.querySelector('#prompt').value") == "one"
    page.type(" changed")
    page.press("Enter")
    page.wait(f"document.querySelector('.message.user .branch') && {ANSWERED}")
    assert texts(page)[0] == "one changed"
    page.click(".message.user .branch button")
    page.wait("document.querySelector('.message .body').textContent === 'one'")
    page.wait("document.querySelector('.message.assistant .branch')?.textContent.includes('2 / 2')")
    (conversation,) = stored(page)
    assert len(conversation["messages"]) == 5


def seed_of_a_long_answer(running: Running, text: str, n_tokens: int) -> int:
    """A seed with which the tiny model does not end before `n_tokens`."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "temperature": 1}
    for seed in range(100):
        answer = running.post("/v1/chat/completions", **body, seed=seed, max_tokens=n_tokens).json()
        if answer["choices"][0]["finish_reason"] == "length":
            return seed
    raise AssertionError("every answer is short")


def test_an_answer_is_stopped_and_kept(
    page: Browser, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed, step = seed_of_a_long_answer(running, "long", 200), Scheduler.step

    def slowly(scheduler: Scheduler) -> Any:
        time.sleep(0.05)
        return step(scheduler)

    monkeypatch.setattr(Scheduler, "step", slowly)  # 200 tokens take ten seconds at least
    start(page, running.url, max_tokens=7000, temperature=1, seed=seed)
    say(page, "long")
    page.wait(f"{LAST}?.dataset.state === 'running'")
    page.press("Escape")
    page.wait(f"{LAST}.dataset.state === 'stopped'")
    running.wait_idle()
    assert page.run("document.querySelector('#stop').hidden")
    (conversation,) = stored(page)
    assert any(m.get("state") == "stopped" for m in conversation["messages"].values())


def test_settings_reach_the_server_and_stay_with_the_conversation(page: Browser, running: Running) -> None:
    page.press("P", "KeyP", modifiers=9)  # Alt+Shift+P
    page.wait("!document.querySelector('#drawer').inert")
    page.run("document.querySelector('[name=system]').focus()")
    page.type("Be brief.")
    page.run("document.querySelector('[name=max_tokens]').select()")
    page.type("3")
    ask(page, "hello")
    (conversation,) = stored(page)
    assert conversation["settings"]["system"] == "Be brief."
    assert page.run(f"{LAST}.querySelector('.stats').textContent").startswith("3 tokens")
    page.press("O", "KeyO", modifiers=9)
    page.wait("document.querySelectorAll('.message').length === 0")
    assert page.run("document.querySelector('[name=system]').value") == ""
    assert page.run("document.querySelector('[name=max_tokens]').value") == "3"


def test_export_import_and_delete(page: Browser) -> None:
    ask(page, "keep me")
    before = stored(page)
    exported = page.run(
        "Promise.all([import('/page/exchange.js'), import('/page/storage.js')])"
        ".then(async ([exchange, storage]) => exchange.toJson(await storage.loadAll()))"
    )
    page.click("#delete-all")
    page.click("#confirm-yes")
    page.wait("document.querySelectorAll('#conversations li').length === 0")
    assert stored(page) == []
    choose_file(page, "#import-input", "chats.json", exported)
    page.wait("document.querySelectorAll('#conversations li').length === 1")
    (after,) = stored(page)
    assert after["title"] == "keep me"
    assert after["messages"].keys() == before[0]["messages"].keys()
    page.click("#conversations .title")
    page.wait("document.querySelectorAll('.message').length === 2")


_OWN_PARENT = {"id": "a" * 24, "parent": "a" * 24, "role": "user", "content": "x"}
CIRCLE = json.dumps(
    {
        "format": "pyllamacpu-conversations",
        "version": 1,
        "conversations": [{"messages": {"a" * 24: _OWN_PARENT}}],
    }
)


@pytest.mark.parametrize(
    "damaged, words",
    [
        ("{", "not JSON"),
        ("{}", "not an export"),
        ('{"format": "pyllamacpu-conversations", "version": 9}', "version 9"),
        ('{"format": "pyllamacpu-conversations", "version": 1, "conversations": 3}', "no list"),
        (CIRCLE, "hang together"),
    ],
)
def test_damaged_exports_are_refused(page: Browser, damaged: str, words: str) -> None:
    choose_file(page, "#import-input", "bad.json", damaged)
    page.wait("document.querySelector('.notice')")
    assert words in page.run("document.querySelector('.notice').textContent")
    assert stored(page) == []


def test_text_files_go_with_a_message_and_others_are_refused(page: Browser) -> None:
    choose_file(page, "#file-input", "bad.bin", "\0\1")
    page.wait("document.querySelector('.notice')")
    assert "not a text" in page.run("document.querySelector('.notice').textContent")
    page.run("""(() => {
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File(['some ``` text'], 'note.md'));
        document.body.dispatchEvent(new DragEvent('drop', { dataTransfer, bubbles: true, cancelable: true }));
    })()""")
    page.wait("document.querySelector('.chip')")
    ask(page, "read it")
    assert page.run("document.querySelector('.file summary').textContent") == "note.md"
    (conversation,) = stored(page)
    sent = page.run(
        "import('/page/conversation.js').then((c) => c.promptText("
        f"{json.dumps(next(m for m in conversation['messages'].values() if m['role'] == 'user'))}))"
    )
    assert sent == "File note.md:\n````\nsome ``` text\n````\n\nread it"


HOSTILE = """<script>window.hit = 1</script><img src=x onerror="window.hit = 1"> [a](javascript:alert(1))
![track](http://track.invalid/x.png) <svg onload="window.hit=1"> [b](data:text/html,x)
<a href="//x.invalid">c</a>

```"><b>
let x = "<i>";
```

| a | b |
|---|---|
| **1** | `2` |

- [x] done <iframe src="http://frame.invalid"></iframe> [fine](https://fine.invalid/)
"""


def test_hostile_markdown_is_harmless_whole_and_in_pieces(page: Browser) -> None:
    shown = page.run(f"""import('/page/markdown.js').then(({{ MarkdownView }}) => {{
        const text = {json.dumps(HOSTILE)};
        const [whole, grown] = [document.createElement('div'), document.createElement('div')];
        document.querySelector('#messages').append(whole, grown);
        new MarkdownView(whole).update(text);
        const view = new MarkdownView(grown);
        for (let end = 1; end <= text.length; end++) view.update(text.slice(0, end));
        const links = [...whole.querySelectorAll('a')].map((a) => a.getAttribute('href'));
        return {{
            same: whole.innerHTML === grown.innerHTML, hit: window.hit ?? null, links,
            bad: whole.querySelectorAll('script, img, svg, iframe, b, [onerror], [onload]').length,
            table: whole.querySelectorAll('td strong').length, code: whole.querySelector('pre').textContent,
            copy: whole.querySelectorAll('.code button').length,
        }};
    }})""")
    assert shown["same"]
    assert (shown["hit"], shown["bad"], shown["table"], shown["copy"]) == (None, 0, 1, 1)
    assert [link for link in shown["links"] if link] == [
        "http://track.invalid/x.png",
        "https://fine.invalid/",
    ]
    assert shown["code"] == 'let x = "<i>";\n'


MANY_MESSAGES = """Promise.all([import('/page/conversation.js'), import('/page/storage.js')])
.then(([tree, storage]) => {
    const long = tree.newConversation({ max_tokens: 8, temperature: 0 }, 'tiny');
    const markdown = '- *some* text with `code`\\n'.repeat(10) + '```js\\nlet x = 1;\\n```\\n';
    let parent = tree.ROOT;
    for (let i = 0; i < 500; i++) {
        const text = `Number ${i}\\n\\n${markdown}`;
        parent = tree.addMessage(long, parent, i % 2 ? 'assistant' : 'user', text).id;
        long.messages[parent].created = i;
    }
    localStorage.setItem('pyllamacpu.open', JSON.stringify(long.id));
    return storage.save(long);
})"""


def test_500_messages_open_and_grow_without_lag(page: Browser, running: Running) -> None:
    page.run(MANY_MESSAGES)
    page.open(f"{running.url}/")
    page.wait("document.querySelectorAll('.message').length === 500")
    page.wait("document.querySelector('.message:last-child .code')")
    assert page.run("document.querySelectorAll('.message .code').length") < 100  # the others wait
    longest = page.run("""new Promise((done) => {
        const scroller = document.querySelector('#scroller');
        let [longest, last, n] = [0, performance.now(), 0];
        const step = (now) => {
            longest = Math.max(longest, now - last);
            last = now;
            scroller.scrollTop -= 700;
            if (++n < 60) requestAnimationFrame(step);
            else done(longest);
        };
        requestAnimationFrame((now) => { last = now; requestAnimationFrame(step); });
    })""")
    assert longest < 500  # ms, on a machine that does other things too
    page.wait("document.querySelectorAll('.message .code').length > 5")


def test_phone_width_has_no_sideways_scrolling(page: Browser) -> None:
    page.size(360, 740, phone=True)
    page.wait("document.querySelector('#sidebar').inert")
    ask(page, "x" * 300)
    assert page.run("document.documentElement.scrollWidth") <= 360
    page.click("#toggle-sidebar")
    page.click("#conversations .title")
    page.wait("document.querySelector('#sidebar').inert")  # it makes room for what was chosen


def test_themes(page: Browser) -> None:
    color = "getComputedStyle(document.body).backgroundColor"
    page.size(1280, 800, dark=True)
    dark = page.run(color)
    page.size(1280, 800, dark=False)
    light = page.run(color)
    assert dark != light
    page.run(
        "const t = document.querySelector('#theme'); t.value = 'dark'; t.dispatchEvent(new Event('change'))"
    )
    assert page.run(color) == dark


def test_why_an_answer_ended_is_said(shared: Browser, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class WordGuard:
        weight_bytes, reads_images = 0, False

        def __init__(self, path: str, **options: Any) -> None: ...

        def check(self, messages: list[dict[str, str]]) -> Verdict:
            return Verdict("unsafe" if "poison" in messages[-1]["content"] else "safe", (), 0.5)

        def close(self) -> None: ...

    monkeypatch.setattr(shield, "Guard", WordGuard)
    stats = f"{LAST}.querySelector('.stats').textContent"
    with serving(("tiny", path), n_ctx=1024, shield=ShieldOptions(guard="guard.gguf")) as running:
        start(shared, running.url, max_tokens=200)
        ask(shared, "poison")
        assert shared.run(stats) == "blocked by the guard or the shield"
        bias = json.dumps({str(byte(ord("a"))): 100})
        shared.run(
            "const real = fetch; window.fetch = (url, options) => real(url, !options?.body ? options : "
            f"{{...options, body: JSON.stringify({{...JSON.parse(options.body), logit_bias: {bias}}})}}); 0"
        )
        ask(shared, "hello")
        assert shared.run(stats).endswith("ended: it repeated itself")


def test_a_key_is_asked_for(shared: Browser, path: Path) -> None:
    with serving(("tiny", path), access=AccessOptions(keys=("secret",))) as running:
        wait_until(lambda: running.get("/health").status_code == 200)
        shared.open(f"{running.url}/")
        for key, then in (("wrong", "!document.querySelector('#key-wrong').hidden"), ("secret", "true")):
            shared.wait("document.querySelector('#key-dialog').open")
            shared.run("document.querySelector('#key').focus()")
            shared.type(key)
            shared.click("#key-yes")
            shared.wait(then)
        shared.wait("document.querySelector('#model').options.length > 0")
        ask(shared, "hello")


def test_while_the_model_loads_and_when_the_server_is_gone(
    shared: Browser, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, load = threading.Event(), ModelPool._load

    def slowly(*given: Any) -> Any:
        assert go.wait(60)
        return load(*given)

    monkeypatch.setattr(ModelPool, "_load", slowly)
    with serving(("tiny", path)) as running:
        try:
            start(shared, running.url)
            assert "loading" in shared.run("document.querySelector('#banner').textContent")
            say(shared, "hello")
            shared.wait(f"{LAST}?.dataset.state === 'waiting'")
        finally:
            go.set()
        shared.wait(ANSWERED)
        shared.wait("document.querySelector('#banner').hidden")
    say(shared, "are you there?")
    shared.wait(f"{LAST}.dataset.state === 'failed'")
    assert "cannot be reached" in shared.run(f"{LAST}.querySelector('.stats').textContent")
    shared.wait("document.querySelector('#banner').dataset.state === 'gone'")
    assert len(texts(shared)) == 4
