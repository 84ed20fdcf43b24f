"""Templates in a child process: what one C call can do there, and that the child is not noticed otherwise."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyllamacpu.text import render_process
from pyllamacpu.text.formats import FORMATS
from pyllamacpu.text.known_templates import LIST, is_known
from pyllamacpu.text.render import CompiledTemplate
from pyllamacpu.text.render_error import RenderError
from pyllamacpu.text.render_process import RemoteTemplate, RenderProcess
from pyllamacpu.text.template import ChatTemplate

DOUBLED = (
    "{% set a = namespace(x=START) %}{% set b = namespace(x=START) %}{% for i in range(48) %}"
    "{% set a.x = [a.x, a.x] %}{% set b.x = [b.x, b.x] %}{% endfor %}"
)
LISTS = DOUBLED.replace("START", "[1]")
TUPLES = (
    DOUBLED.replace("START", "(1,)").replace("[a.x, a.x]", "(a.x, a.x)").replace("[b.x, b.x]", "(b.x, b.x)")
)
HOSTILE = [
    LISTS + "{{ a.x == b.x }}",
    LISTS + "{{ a.x < b.x }}",
    LISTS + "{{ a.x in [b.x] }}",
    LISTS + "{{ a.x }}",
    LISTS + "{{ a.x | string }}",
    LISTS + "{{ a.x | tojson }}",
    LISTS + "{{ [a.x] | join }}",
    LISTS + "{{ [a.x, b.x] | unique | list }}",
    LISTS + "{{ [a.x, b.x] | sort }}",
    TUPLES + "{{ {a.x: 1}[b.x] }}",
    "{{ 3 | round(-300000000) }}{{ 1.5 | round(300000000, 'floor') }}",
    "{% set n = namespace(x=9) %}{% for i in range(9) %}{% set n.x = n.x * n.x %}{% endfor %}"
    "{{ n.x.to_bytes(4000000000) }}",
    "{{ range(99999) | slice(800000000) | list }}",
    "{{ range(3) | batch(800000000, 'x') | list }}",
    "{{ [[1] * 9999] * 9999 | sum(start=[]) }}",
    "{{ [1] | tojson(indent=2000000000) }}",
    "{{ '%-*d' % (2000000000, 1) }}",
    "{{ '{:>{}}'.format(1, 2000000000) }}",
    "{{ 'x'.encode().ljust(4000000000) }}",
    "{{ ('x' * 9999).encode().join([('x' * 9999).encode()] * 99999) }}",
]


@pytest.fixture(scope="module")
def child() -> Iterator[RenderProcess]:
    child = RenderProcess(cpu_seconds=0.5)
    yield child
    child.close()


@pytest.mark.parametrize("source", HOSTILE)
def test_one_call_without_end_is_ended(source: str, child: RenderProcess) -> None:
    start = time.process_time()
    try:
        text = RemoteTemplate(source, child).render({"messages": []})
    except RenderError as error:
        assert error.kind in ("stopped", "failed", "compile")
    else:
        assert len(text) < 100_000
    assert time.process_time() - start < 0.5, "the work is the child's, not this process's"
    assert RemoteTemplate("{{ x }}", child).render({"x": "still there"}) == "still there"


def test_answers_are_those_of_this_process(child: RenderProcess) -> None:
    sources = [
        "{{ bos }}{% for m in messages %}{{ m.content | tojson }}{% endfor %}",
        "{{ raise_exception('no \u00e9') }}",
        "a\n{{ x.y.z }}",
        "{% if %}",
        "{{ 1 | no_such_filter }}",
        "{{ 'x' * 10000000000 }}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    ]
    values = {"bos": "<s>", "messages": [{"content": "h\u00e9 \ud83d\ude00"}]}

    def outcome(kind: Any, *more: Any) -> Any:
        try:
            return kind(source, *more).render(values)
        except RenderError as error:
            return error.kind, error.line, error.words

    for source in sources:
        assert outcome(RemoteTemplate, child) == outcome(CompiledTemplate), source


def test_values_that_cannot_be_passed_on_are_an_error(child: RenderProcess) -> None:
    with pytest.raises(RenderError, match="cannot be passed"):
        RemoteTemplate("{{ f }}", child).render({"f": lambda: None})


def test_threads_may_render_at_once(child: RenderProcess) -> None:
    template, wrong = RemoteTemplate("{{ n }}", child), []

    def work(n: int) -> None:
        for _ in range(50):
            if template.render({"n": n}) != str(n):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_a_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    child = RenderProcess(cpu_seconds=30)
    timer = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
    start = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        RemoteTemplate(HOSTILE[0], child).render({})
    assert time.monotonic() - start < 20
    assert RemoteTemplate("{{ 1 + 1 }}", child).render({}) == "2"
    child.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_a_forked_process_gets_a_child_of_its_own() -> None:
    assert RemoteTemplate("{{ x }}").render({"x": 1}) == "1"
    pid = os.fork()
    if pid == 0:
        try:
            ok = RemoteTemplate("{{ x }}").render({"x": 2}) == "2"
        finally:
            os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert RemoteTemplate("{{ x }}").render({"x": 3}) == "3"


def test_known_templates_need_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a child was started")

    monkeypatch.setattr(render_process.RenderProcess, "ask", fail)
    for chosen in FORMATS.values():
        assert is_known(chosen.source)
        ChatTemplate(chosen.source).render([{"role": "user", "content": "x"}])
    with pytest.raises(AssertionError, match="was started"):
        ChatTemplate("{{ messages }} of a stranger")


def test_the_list_of_known_templates_is_whole() -> None:
    rows = [line for line in LIST.read_text(encoding="ascii").splitlines() if not line.startswith("#")]
    assert len(rows) > 30
    assert all(len(line.split()[0]) == 64 and line.split(maxsplit=1)[1] for line in rows)


def test_the_starter_models_template_is_known(starter_model: Path) -> None:
    from pyllamacpu.gguf import GGUFFile

    with GGUFFile.open(starter_model) as file:
        assert is_known(str(file.metadata["tokenizer.chat_template"]))
