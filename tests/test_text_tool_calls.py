"""Tool calls in what models write, whole and in pieces."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from pyllamacpu.text.tool_calls import ToolCallReader, parse_calls

NAMES = ["get_weather", "add", "brave_search", "math.log"]
PARIS = [("get_weather", {"city": "Paris"})]
TWO = [("add", {"a": 1, "b": -2}), ("get_weather", {"city": "São 'P'"})]

CALLS: list[tuple[str, list[tuple[str, Any]]]] = [
    ('{"name": "get_weather", "parameters": {"city": "Paris"}}', PARIS),
    ('\n {"type": "function", "name": "get_weather", "parameters": {"city": "Paris"}}\n', PARIS),
    ('{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}', PARIS),
    ('{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}', PARIS),
    ('{"function": "get_weather", "parameters": {"city": "Paris"}}', PARIS),
    ('<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}', PARIS),
    ('<|python_start|>{"name": "get_weather", "parameters": {"city": "Paris"}}<|python_end|>', PARIS),
    ('```json\n{"name": "get_weather", "parameters": {"city": "Paris"}}\n```', PARIS),
    ("```python\n[get_weather(city='Paris')]\n```\n", PARIS),
    ("[get_weather(city='Paris')]", PARIS),
    ('<function=get_weather>{"city": "Paris"}</function>', PARIS),
    ('brave_search.call(query="the weather")', [("brave_search", {"query": "the weather"})]),
    ('{"name": "add"}', [("add", {})]),
    ("[math.log(x=10)]", [("math.log", {"x": 10})]),
    ("[add(a=1, b=-2), get_weather(city=\"São 'P'\")]", TWO),
    ("[add(a=[1, {'k': (True, none_of := 1)}])]", []),
    ("[add(a=[1, {'k': [true, None, null]}], b=-2.5)]",
     [("add", {"a": [1, {"k": [True, None, None]}], "b": -2.5})]),
    *[
        (separator.join(json.dumps({"name": n, "parameters": p}) for n, p in TWO), TWO)
        for separator in ("; ", ";", ",", "\n", " ", "")
    ],
    ('{"name": "add", "parameters": null}', [("add", {})]),
    ('{"name": "add", "parameters": {"a": "<|python_tag|>"}}', [("add", {"a": "<|python_tag|>"})]),
    ('<|python_start|><|python_end|> {"name": "add"}', [("add", {})]),
    ('```json\n<|python_tag|>{"name": "add"}\n```', [("add", {})]),
    (r"[add(a='\d', b=[(1, -2.5)])]", [("add", {"a": r"\d", "b": [[1, -2.5]]})]),
    (json.dumps([{"name": n, "arguments": p} for n, p in TWO], ensure_ascii=False), TWO),
]  # fmt: skip

PROSE = [
    "",
    "Paris is warm.",
    'To call it, write {"name": "get_weather", "parameters": {}}',
    '{"name": "get_weather", "parameters": {"city": "Paris"}} is what I would say.',
    '{"name": "steal", "parameters": {}}',
    '{"city": "Paris"}',
    '{"name": "get_weather", "parameters": {"city"',
    '{"name": "get_weather", "parameters": 3}',
    '{"name": "get_weather", "parameters": "not json"}',
    '{"name": "get_weather", "parameters": {}, "arguments": {}}',
    "[get_weather('Paris')]",
    "[get_weather(**{'city': 'Paris'})]",
    "[get_weather(city=__import__('os'))]",
    "[1, 2, 3]",
    "[" * 5000,
    "```python\nprint(1)\n```",
    "<function=get_weather>{}",
    "get_weather.calls are many",
    '{"name": "add", "age": 3}',
    '{"type": "function", "function": {"name": "add"}, "comment": "not a call"}',
    '{"name": "add", "parameters": {"a": NaN}}',
    '{"name": "add", "parameters": {"a": 1e999}}',
    '{"name": "add", "parameters": {"a": "\\ud800"}}',
    '{"n\\u0061me": "add"}',
    "[add(a=1e999)]",
    "[add(a='\\ud800')]",
    "[# add\nadd()]",
]


def found(text: str) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in parse_calls(text, NAMES)]


@pytest.mark.parametrize("text, expected", CALLS, ids=[text[:40] for text, _ in CALLS])
def test_calls(text: str, expected: list[tuple[str, Any]]) -> None:
    assert found(text) == expected


@pytest.mark.parametrize("text", PROSE, ids=[text[:40] for text in PROSE])
def test_prose(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize("text", [*PROSE, *(text for text, _ in CALLS)])
def test_every_cut_gives_the_same(text: str) -> None:
    text = text[:400]
    whole = parse_calls(text, NAMES)
    cuts = [[text[:at], text[at:]] for at in range(len(text) + 1)]
    for pieces in [*cuts, list(text), [text[i : i + 5] for i in range(0, len(text), 5)]]:
        reader = ToolCallReader(NAMES)
        shown = "".join(reader.push(piece) for piece in pieces)
        rest, calls = reader.finish()
        assert calls == whole
        assert shown + rest == ("" if whole else text)


def test_text_is_not_held_back() -> None:
    reader = ToolCallReader(NAMES)
    assert reader.push("Well") == "Well" and reader.push(" {") == " {"


@pytest.mark.parametrize("text", [
    "```python\nprint(1)", '{"city": ', "[1, 2", "[get_we are", "```json\n{\"a\": 1", "<b>", "add.calls",
])  # fmt: skip
def test_what_cannot_become_a_call_is_not_held_back(text: str) -> None:
    reader = ToolCallReader(NAMES)
    assert "".join(map(reader.push, text)) == text


def test_any_text_gives_the_same_however_it_is_cut() -> None:
    """Texts put together from the parts of calls: what they give and what is shown never depends on cuts."""
    chance = random.Random(7)
    parts = [*"{}[]()<>`,;: \n\"'", '"name"', ": ", "add", '"add"', "parameters", "```json\n", "\n```", "Hm."]
    parts += [
        "<|python_tag|>",
        "<|python_end|>",
        "<function=add>",
        "</function>",
        "add()",
        '.call(query="x")',
    ]
    parts += [text for text, _ in CALLS]
    n_calls = 0
    for _ in range(3000):
        text = "".join(chance.choices(parts, k=chance.randint(1, 5)))
        calls = parse_calls(text, NAMES)
        n_calls += bool(calls)
        reader, at, shown = ToolCallReader(NAMES), 0, ""
        while at < len(text):
            size = chance.choice([1, 1, 2, 7, 40])
            shown += reader.push(text[at : at + size])
            at += size
        rest, found_calls = reader.finish()
        assert found_calls == calls and shown + rest == ("" if calls else text)
    assert n_calls > 100


def test_only_one_call_where_no_more_fit() -> None:
    text = f"{CALLS[0][0]}\n{CALLS[0][0]}"
    assert len(parse_calls(text, NAMES)) == 2 and parse_calls(text, NAMES, several=False) == []
    reader = ToolCallReader(NAMES, several=False)
    assert (reader.push(text), reader.finish()) == ("", (text, []))


def test_without_tools_nothing_is_a_call() -> None:
    assert parse_calls(CALLS[0][0], []) == []
