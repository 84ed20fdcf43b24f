"""`serve --shield`: what users, tools and models say is scanned; each dialect tells what was found.

Prompt Guard is one that goes by a word. Covers safety/shield_scanners.py, cli/shield_options.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cli_letters import Result, run  # noqa: F401
from serving import Running, serving, wait_until
from tiny_model import write_model

from pyllamacpu import Llama
from pyllamacpu.api.tools import NO_TOOLS, ChatTools
from pyllamacpu.engine.generate import GenerationStats, TextEvent
from pyllamacpu.errors import OptionError
from pyllamacpu.safety import Guard, Verdict, shield, shield_scanners
from pyllamacpu.safety.shield import BlockedEvent, Conversation, Piece, Shield, ShieldOptions
from pyllamacpu.safety.shield_scanners import ShieldScanners

EVERYTHING = ShieldOptions(("prompt-guard", "code-shield", "hidden-ascii"), __file__)  # of a model, by name


class WordPromptGuard:
    """An attack is what has the word in it. `seen` are the texts."""

    seen: ClassVar[list[str]] = []

    def __init__(self, path: str, **options: Any) -> None: ...

    def score(self, text: str) -> float:
        self.seen.append(text)
        if "fail" in text:
            raise RuntimeError("it broke")
        return 0.95 if "attack" in text else 0.05

    def close(self) -> None: ...


@pytest.fixture(scope="module", autouse=True)
def prompt_guard() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyllamacpu.safety.prompt_guard.PromptGuard", WordPromptGuard)
        patch.setattr("pyllamacpu.safety.code_shield.scan.find_semgrep", lambda: None)
        yield


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    WordPromptGuard.seen.clear()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def running(path: Path, prompt_guard: None) -> Iterator[Running]:
    with serving(("tiny", path), shield=EVERYTHING) as found:
        wait_until(lambda: found.get("/health").status_code == 200)
        yield found
        found.wait_idle()


def chat(*messages: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": r, "content": c} for r, c in messages], "max_tokens": 3, **more}


def counted(running: Running) -> dict[str, float]:
    lines = running.get("/metrics").text.splitlines()
    pairs = (line.removeprefix("pyllamacpu_").split(" ") for line in lines if line.startswith("pyllamacpu_"))
    return {name: float(value) for name, value in pairs}


def test_input_is_scanned_by_role(running: Running) -> None:
    before = counted(running)

    def ending(*messages: tuple[str, str]) -> dict[str, Any]:
        choice = running.post("/v1/chat/completions", **chat(*messages, ignore_eos=True)).json()["choices"][0]
        return {key: choice.get(key) for key in ("finish_reason", "shield")}

    plain = {"finish_reason": "length", "shield": None}
    assert ending(("system", "an attack is"), ("user", "hello")) == plain  # the operator's own words
    assert ending(("user", "gets(x);")) == plain  # people may show insecure code
    found = ending(("user", "an attack"), ("assistant", "no"), ("user", "and now"))
    assert found["finish_reason"] == "content_filter"
    reason = "Likely a prompt injection or jailbreak (probability 0.9500)"
    assert found["shield"] == [
        {"scanner": "prompt_guard", "what": "input", "reason": reason, "score": 0.95, "status": "success"}
    ]
    tools = ending(("user", "read"), ("assistant", "ok"), ("tool", "gets(x); an attack\U000e0041"))
    assert [one["scanner"] for one in tools["shield"]] == ["prompt_guard", "code_shield", "hidden_ascii"]
    after = counted(running)
    names = ('shield_findings_total{scanner="prompt_guard",status="success",what="input"}',
             'blocked_total{what="input"}')  # fmt: skip
    assert [after[name] - before.get(name, 0) for name in names] == [2, 2]


def test_messages_that_come_again_are_known(running: Running) -> None:
    for _ in range(3):
        running.post("/v1/chat/completions", **chat(("user", "hello you")))
    assert WordPromptGuard.seen == ["hello you"]


def test_what_cannot_be_judged_is_blocked(running: Running) -> None:
    for _ in range(2):  # and not remembered
        answer = running.post("/v1/chat/completions", **chat(("user", "fail"))).json()["choices"][0]
        assert answer["shield"][0]["status"] == "error" and "it broke" in answer["shield"][0]["reason"]
    assert WordPromptGuard.seen == ["fail", "fail"]


@pytest.mark.parametrize(
    "route, body, read",
    [
        (
            "/v1/completions",
            {"prompt": "attack"},
            lambda a: (a["choices"][0]["finish_reason"], a["choices"][0]),
        ),
        ("/v1/messages", chat(("user", "attack")), lambda a: (a["stop_reason"], a)),
        ("/v1/responses", {"input": "attack"}, lambda a: (a["incomplete_details"]["reason"], a)),
        (
            "/api/chat",
            {"model": "tiny", "messages": [{"role": "user", "content": "attack"}], "stream": False},
            lambda a: (a["done_reason"], a),
        ),
        (
            "/api/generate",
            {"model": "tiny", "prompt": "attack", "stream": False},
            lambda a: (a["done_reason"], a),
        ),
        ("/completion", {"prompt": "attack"}, lambda a: (a["stop_type"], a)),
    ],
)
def test_each_dialect_tells_what_was_found(
    running: Running, route: str, body: dict[str, Any], read: Any
) -> None:
    response = running.post(route, **body)
    assert response.status_code == 200, response.text
    reason, place = read(response.json())
    assert reason == ("refusal" if route == "/v1/messages" else "content_filter")
    assert place["shield"][0]["scanner"] == "prompt_guard"


@pytest.mark.parametrize(
    "route, body, name",
    [
        ("/v1/chat/completions", chat(("user", "attack"), stream=True), "choices"),
        ("/v1/messages", chat(("user", "attack"), stream=True), "message_delta"),
        ("/v1/responses", {"input": "attack", "stream": True}, "response.incomplete"),
        ("/api/generate", {"model": "tiny", "prompt": "attack"}, "done_reason"),
        ("/completion", {"prompt": "attack", "stream": True}, "stop_type"),
    ],
)
def test_streams_tell_it_too(running: Running, route: str, body: dict[str, Any], name: str) -> None:
    lines = [line for line in running.post(route, **body).text.splitlines() if '"shield"' in line]
    assert len(lines) == 1 and name in lines[0]
    assert '"scanner":"prompt_guard"' in lines[0].replace(" ", "")


def watched(
    texts: list[str], options: ShieldOptions = EVERYTHING, tools: ChatTools = NO_TOOLS
) -> tuple[str, BlockedEvent | None]:
    """What passes of an answer of these pieces, one token each, and its end if that is a blocked one."""
    stats = GenerationStats(1, 0, len(texts), 0.0, 0.0)

    async def pieces() -> Any:
        for i, text in enumerate(texts):
            yield Piece(0, TextEvent(text, (i,)))
        yield Piece(0, TextEvent("", finish_reason="stop", stats=stats))

    async def main() -> tuple[str, BlockedEvent | None]:
        one = Shield(options)
        said, end = "", None
        conversation = Conversation([{"role": "user", "content": "code"}], tools=tools)
        ended: list[int] = []
        watching = one.watch(pieces(), lambda i: conversation, lambda i: 1, lambda i, s: ended.append(i))
        async for _, event in watching:
            said += event.text
            end = event
        one.close()
        blocked = end if isinstance(end, BlockedEvent) else None
        assert bool(ended) == (blocked is not None)
        return said, blocked

    return asyncio.run(main())


def test_answers_are_scanned_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shield, "WINDOW", 4)
    safe = ["Here", " it", " is", ":\n", "```python\n", "import", " os\n", "x = 1\n"]
    assert watched([*safe, "```"]) == ("".join(safe) + "```", None)
    said, end = watched([*safe, "os.", "system", "(", "cmd", ")", "\n", "more", "```"])
    assert (
        said == "".join(safe) and end is not None
    )  # the window with the call, and all behind it, are not sent
    assert end.findings[0].scanner == "code_shield" and end.findings[0].what == "output"
    assert "insecure-os-system-use" in end.findings[0].reason and end.finish_reason == "content_filter"
    assert watched(["a", "\U000e0041"])[1] is not None
    assert watched(["an", " attack"]) == ("an attack", None)  # a model is not its own attacker


@pytest.mark.parametrize(
    ("said", "scanner"),
    [
        ('{"name": "run", "parameters": {"code": "os.system(cmd)"}}', "code_shield"),
        ('{"name": "run", "parameters": {"code": "os.system(cmd)", "then": ', "code_shield"),  # cut
        ('[run(code="os.system(cmd)")]', "code_shield"),
        ('<function=run>{"code": "os.system(cmd)"}</function>', "code_shield"),
        (r'{"name": "run", "parameters": {"text": "\udb40\udc41"}}', "hidden_ascii"),
    ],
)
def test_calls_are_judged_as_their_tools_read_them(
    monkeypatch: pytest.MonkeyPatch, said: str, scanner: str
) -> None:
    monkeypatch.setattr(shield, "WINDOW", 8)
    tools = ChatTools(({"type": "function", "function": {"name": "run"}},))
    text, end = watched(list(said), tools=tools)
    assert end is not None and [one.scanner for one in end.findings] == [scanner]
    assert said.startswith(text) and not text.endswith("}")
    assert watched(list(said.replace("os.system", "len").replace("udc41", "udd20")), tools=tools)[1] is None


def test_an_answer_of_a_model_is_blocked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model really says, taken for a pattern."""
    monkeypatch.setattr(shield, "WINDOW", 4)
    with Llama(str(path), type_k="f32", type_v="f32", verbose=False) as llm:
        whole = llm("hello", max_tokens=24, temperature=0)["choices"][0]["text"]
    word = whole[-8:-4]
    assert word not in whole[:-8]
    defaults = {"word": "".join(f"\\U{ord(c):08x}" for c in word)}
    monkeypatch.setattr("pyllamacpu.safety.scanners.patterns.DEFAULT_PATTERNS", defaults)
    with serving(("tiny", path), shield=ShieldOptions(("regex",))) as found:
        wait_until(lambda: found.get("/health").status_code == 200)
        body = {"prompt": "hello", "max_tokens": 24, "temperature": 0, "stream": True}
        lines = found.post("/v1/completions", **body).text.split("\n\n")
        chunks = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
        text = "".join(chunk["text"] for chunk in chunks)
        assert text and whole.startswith(text) and word not in text
        assert chunks[-1]["finish_reason"] == "content_filter"
        assert chunks[-1]["shield"][0]["reason"] == "Regex match: word"
        found.wait_idle()


def test_guard_and_shield_together(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class BombGuard:
        weight_bytes = 0
        reads_images = False

        def __init__(self, path: str, **options: Any) -> None: ...

        def check(self, messages: list[dict[str, str]]) -> Verdict:
            bad = "bomb" in messages[-1]["content"]
            return Verdict("unsafe", ("S9",), 0.9) if bad else Verdict("safe", (), 0.1)

        def close(self) -> None: ...

    assert Guard is not BombGuard
    monkeypatch.setattr(shield, "Guard", BombGuard)
    with serving(("tiny", path), shield=replace(EVERYTHING, guard="guard.gguf")) as found:
        wait_until(lambda: found.get("/health").status_code == 200)
        choice = found.post("/v1/completions", prompt="attack with a bomb", max_tokens=1).json()["choices"][0]
        assert [(one["scanner"], one["reason"][:6]) for one in choice["shield"]] == [
            ("guard", "S9"),
            ("prompt_guard", "Likely"),
        ]
        too_long = found.post("/v1/completions", prompt="a bomb " * 9000, max_tokens=1)
        assert too_long.status_code == 400  # and is not judged
        found.wait_idle()


def test_a_prompt_guard_that_cannot_be_loaded_does_not_serve(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: str) -> None:
        raise OptionError("it is not a Prompt Guard")

    monkeypatch.setattr("pyllamacpu.safety.prompt_guard.PromptGuard", broken)
    with serving(("tiny", path), shield=EVERYTHING) as found:
        wait_until(lambda: found.server.failure is not None)
        assert "is not a Prompt Guard" in str(found.server.failure)
    with pytest.raises(OptionError, match="'x' is not known"):
        Shield(ShieldOptions(("x",)))


def test_the_weights_count(path: Path) -> None:
    assert Shield(ShieldOptions(("prompt-guard",), str(path))).weight_bytes == path.stat().st_size
    assert Shield(ShieldOptions(("regex",))).weight_bytes == 0


def test_what_is_known_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shield_scanners, "_KEPT", 2)
    one = ShieldScanners(EVERYTHING.scanners, EVERYTHING.prompt_guard)
    for word in "abca":
        asyncio.run(one.read([{"role": "user", "content": word}]))
    assert WordPromptGuard.seen == ["a", "b", "c", "a"]
    one.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--shield", ""), "name at least one of prompt-guard, code-shield"),
        (("--shield", "fire"), "--shield fire: there are prompt-guard, code-shield"),
        (("--shield", "code-shield=x.gguf"), "takes no model"),
        (("--shield", "prompt-guard"), "name its model too, as prompt-guard=MODEL"),
        (("--shield", "code-shield,guard"), "name its model too, as guard=MODEL"),
        (("--guard", "a.gguf", "--shield", "guard=b.gguf"), "give one of them"),
        (("--guard-category", "S1"), "--guard-category: name the guard model too"),
        (("--shield", "prompt-guard=a,regex,prompt-guard=b"), "--shield prompt-guard is given twice"),
        (("--shield", "regex", "--guard-threshold", "0.3"), "--guard-threshold: name the guard model too"),
    ],
)
def test_the_option(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.delenv("PYLLAMACPU_PROMPT_GUARD", raising=False)
    result = run("serve", *arguments)
    assert result.code == 2 and words in result.err


def test_a_guards_policy(path: Path, tmp_path: Path) -> None:
    own = write_model(
        tmp_path / "g.gguf", general__name="Llama Guard 3", tokenizer__chat_template=None, n_ctx=2048
    )
    policy = ShieldOptions(
        guard=str(own), categories=(("S9", ""), ("S1", "")), exclude=("S1",), threshold=1e-9
    )
    with serving(("tiny", path), shield=policy) as found:
        wait_until(lambda: found.get("/health").status_code == 200)
        choice = found.post("/v1/completions", prompt="hello", max_tokens=1).json()["choices"][0]
        assert [one["reason"] for one in choice["shield"]] == ["S9"]
        found.wait_idle()
    with serving(("tiny", path), shield=replace(policy, exclude=("S12",))) as found:
        wait_until(lambda: found.server.failure is not None)
        assert "no category 'S12' to leave out" in str(found.server.failure)


def with_semgrep(monkeypatch: pytest.MonkeyPatch, folder: Path, body: str) -> Path:
    """A program in the place of semgrep; its log has the code of each run."""
    log, program = folder / "log", folder / "semgrep"
    program.write_text(
        f"#!{sys.executable}\nimport json, sys\nfiles = [a for a in sys.argv if a.endswith('.js')]\n"
        "rules = json.load(open(sys.argv[sys.argv.index('--config') + 1]))['rules']\n"
        f"open({str(log)!r}, 'a').write(repr([open(f).read() for f in files]) + '\\n')\n"
        f"def found():\n    print(json.dumps({{'results': [{{'path': f, 'check_id': rules[0]['id'], 'start':"
        f" {{'line': 1, 'col': 1}}}} for f in files if 'bad' in open(f).read()]}}))\n{body}\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr("pyllamacpu.safety.code_shield.scan.find_semgrep", lambda: str(program))
    return log


def test_semgrep_judges_answers_when_their_code_has_its_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shield, "WINDOW", 4)
    log = with_semgrep(monkeypatch, tmp_path, "found()")
    options = ShieldOptions(("code-shield",))
    assert Shield(options).not_scanned(with_images=False) == []
    fine = [
        "Here",
        " it",
        " is",
        ":\n",
        "```js\n",
        "exec(",
        "a",
        ")\n",
        "x",
        "\n",
        "```\n",
        "so",
        " it",
        " is",
    ]
    assert watched(fine, options) == ("".join(fine), None)
    assert log.read_text().splitlines() == [repr(["exec(a)\nx\n"])]  # once, and whole
    said, end = watched([*fine[:6], "bad", *fine[7:]], options)
    assert said == "Here it is:\n" and end is not None and end.finish_reason == "content_filter"
    assert "Insecure code" in end.findings[0].reason and end.findings[0].scanner == "code_shield"
    said, end = watched([*fine[:6], "bad"], options)  # cut
    assert said == "Here it is:\n" and end is not None


def test_code_without_an_end_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shield, "WINDOW", 4)
    monkeypatch.setattr(shield, "MOST_HELD", 8)
    log = with_semgrep(monkeypatch, tmp_path, "found()")
    texts = ["```js\n", "exec(a)\n", *(f"x{i}\n" for i in range(18)), "bad"]
    said, end = watched(texts, ShieldOptions(("code-shield",)))
    assert end is not None and said == "".join(texts[:16])
    assert len(log.read_text().splitlines()) == 3


@pytest.mark.parametrize("body", ["sys.exit('no core')", "import time; time.sleep(60)"])
def test_a_semgrep_that_fails_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str) -> None:
    monkeypatch.setattr("pyllamacpu.safety.code_shield.semgrep_scan.SECONDS", 1.0)
    with_semgrep(monkeypatch, tmp_path, body)
    said, end = watched(["```js\n", "exec(a)\n", "```"], ShieldOptions(("code-shield",)))
    assert end is not None and not said and end.findings[0].status == "error"
    assert "Code Shield: semgrep" in end.findings[0].reason
    assert watched(["```js\n", "f(a)\n", "```"], ShieldOptions(("code-shield",)))[1] is None


def test_results_of_tools_are_judged_by_semgrep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_semgrep(monkeypatch, tmp_path, "found()")
    one = Shield(ShieldOptions(("code-shield",)))
    said = Conversation([{"role": "tool", "content": "```js\nexec(bad)\n```"}])
    (finding,) = asyncio.run(one.judge_prompt(said))
    assert "[error:" in finding.reason or "[warning:" in finding.reason
    one.close()
    (closed,) = asyncio.run(one.judge_prompt(Conversation([{"role": "tool", "content": "exec(bad)"}])))
    assert closed.status == "error"  # who asks behind the end gets no answer


def test_without_semgrep_that_is_said() -> None:
    words = Shield(ShieldOptions(("code-shield",))).not_scanned(with_images=True)
    assert "need semgrep, which is not installed: c (" in words[1]
