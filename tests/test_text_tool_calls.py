"""Tool calls in what models write, whole and in pieces."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from typing import Any

import pytest

from pyllamacpu.text.call_forms import ToolCall
from pyllamacpu.text.call_parts import Answer, ToolCallDelta, join_parts
from pyllamacpu.text.json_scanner import JsonScanner, is_json_object
from pyllamacpu.text.tool_calls import ToolCallReader, read_answer

NAMES = ["get_weather", "add", "brave_search", "math.log"]
PARIS = [("get_weather", {"city": "Paris"})]
TWO = [("add", {"a": 1, "b": -2}), ("get_weather", {"city": "São 'P'"})]

WEATHER = '{"name": "get_weather", "parameters": {"city": "Paris"}}'
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
    ("\n".join(f"<tool_call>\n{json.dumps({'name': n, 'arguments': p})}\n</tool_call>" for n, p in TWO), TWO),
    (f"<tool_call>{json.dumps([{'name': n, 'arguments': p} for n, p in TWO])}</tool_call>", TWO),
    (f" functools[{', '.join(json.dumps({'name': n, 'arguments': p}) for n, p in TWO)}]", TWO),
    (f"<tool_call>{WEATHER}</tool_call> <tool_call>\n[{WEATHER}]", PARIS * 2),
    (' functools[{"name": "add", "arguments": "{\\"a\\": 1}"}]', [("add", {"a": 1})]),
]  # fmt: skip

PROSE = [
    "",
    "Paris is warm.",
    'To call it, write {"name": "get_weather", "parameters": {}}',
    '{"name": "steal", "parameters": {}}',
    '{"city": "Paris"}',
    '{"name": "get_weather", "parameters": 3}',
    '{"name": "get_weather", "parameters": "not json"}',
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
    '{"n\\u0061me": "add"}',
    "[add(a=1e999)]",
    "[add(a='\\ud800')]",
    "[# add\nadd()]",
    '<tool_call>{"name": "steal", "arguments": {}}</tool_call>',
    "<tool_calls> are written in tags",
    "functools is a module",
    "functools[add(a=1)]",
]


# What comes behind a call that has begun: (text, calls with whether they are whole, the text behind them).
BEGUN: list[tuple[str, list[tuple[str, str, bool]], str]] = [
    (f"{WEATHER} is it.", [("get_weather", '{"city": "Paris"}', True)], " is it."),
    (f"{WEATHER}\n[1]", [("get_weather", '{"city": "Paris"}', True)], "\n[1]"),
    (f"[{WEATHER}, 3]", [("get_weather", '{"city": "Paris"}', True)], ", 3]"),
    (f"[{WEATHER},", [("get_weather", '{"city": "Paris"}', True)], ""),
    (WEATHER[:-1], [("get_weather", '{"city": "Paris"}', True)], ""),
    (f'{WEATHER}; {{"name": "add', [("get_weather", '{"city": "Paris"}', True)], '; {"name": "add'),
    (f'{WEATHER}; {{"name": "steal"}}', [("get_weather", '{"city": "Paris"}', True)], '; {"name": "steal"}'),
    ('{"name": "add", "parameters": {"a": [1, "x', [("add", '{"a": [1, "x', False)], ""),
    ('{"name": "add", "parameters": {}, "arguments": {}}', [("add", "{}", True)], ', "arguments": {}}'),
    ('{"name": "add", "parameters": {"a": NaN}}', [("add", '{"a": ', False)], "NaN}}"),
    ('{"name": "add", "parameters": {"a": 1e999}}', [("add", '{"a": 1e999', False)], "}}"),
    (r'{"name": "add", "parameters": {"a": "\ud800"}}', [("add", r'{"a": "\ud800', False)], '"}}'),
    (
        '{"name": "add", "parameters": {"a": ' + "[" * 100,
        [("add", '{"a": ' + "[" * 99, False)],
        "[",
    ),
]


TAGGED = f"<tool_call>\n{WEATHER}\n</tool_call>"
SAID = [
    (f"Let me look.\n{TAGGED}", 1, "Let me look.\n"),
    (f"Let me look.\n{TAGGED}\n{TAGGED}\n", 2, "Let me look.\n"),
    (f"a {TAGGED} b < <{TAGGED}", 2, "a \n b < <"),
    (f"a <tool_call>[{WEATHER}, {WEATHER}]</tool_call>", 2, "a "),
    (f"<tool_call>{{}}</tool_call> {TAGGED}", 1, "<tool_call>{}</tool_call> "),
    (f"a <tool_call>\n```{WEATHER}", 0, f"a <tool_call>\n```{WEATHER}"),
    (f"a <|python_tag|>{WEATHER} <tool_c", 0, f"a <|python_tag|>{WEATHER} <tool_c"),
    (f"{WEATHER}\n</tool_call> That is all.", 1, "\n That is all."),
]


@pytest.mark.parametrize("text, n_calls, rest", SAID, ids=[text[:40] for text, _, _ in SAID])
def test_a_tag_begins_calls_in_the_middle_of_a_text(text: str, n_calls: int, rest: str) -> None:
    weather = ToolCall("get_weather", '{"city": "Paris"}')
    for size in (1, 2, 7, len(text)):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert read_pieces(pieces) == (rest, [weather] * n_calls)
    at_most_one = read_answer(text, NAMES, 1)
    assert at_most_one.calls == [weather] * min(n_calls, 1)
    assert read_pieces([text], plain=True).calls == ([weather] if text.startswith("{") else [])


def found(text: str) -> list[tuple[str, Any]]:
    rest, calls = read_answer(text, NAMES)
    assert rest == ("" if calls else text) and all(call.whole for call in calls)
    return [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize("text, expected", CALLS, ids=[text[:40] for text, _ in CALLS])
def test_calls(text: str, expected: list[tuple[str, Any]]) -> None:
    assert found(text) == expected


@pytest.mark.parametrize("text", PROSE, ids=[text[:40] for text in PROSE])
def test_prose(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize("text, calls, rest", BEGUN, ids=[text[:50] for text, _, _ in BEGUN])
def test_what_has_begun_is_a_call(text: str, calls: list[tuple[str, str, bool]], rest: str) -> None:
    """No cut of the text takes back a call, and all that is not part of one is text."""
    answer = read_answer(text, NAMES)
    assert answer == (rest, [ToolCall(*call) for call in calls])


def read_pieces(pieces: Sequence[str], **more: Any) -> Answer:
    reader = ToolCallReader(NAMES, **more)
    parts = [part for piece in pieces for part in reader.push(piece)]
    return join_parts([*parts, *reader.finish()])


@pytest.mark.parametrize("text", [*PROSE, *(text for text, _ in CALLS), *(text for text, _, _ in BEGUN)])
def test_every_cut_gives_the_same(text: str) -> None:
    text = text[:150]
    cuts = [[text[:at], text[at:]] for at in range(len(text) + 1)]
    pieces = [*cuts, list(text), [text[i : i + 5] for i in range(0, len(text), 5)]]
    assert {str(read_pieces(cut)) for cut in pieces} == {str(read_answer(text, NAMES))}


def test_arguments_come_as_they_are_written() -> None:
    """A delta for each piece, the name first and once; a piece is there when its text is."""
    reader = ToolCallReader(NAMES)
    assert reader.push('{"name": "get_weather", "parameters":') == []
    assert reader.push(' {"ci') == [ToolCallDelta(0, "get_weather"), ToolCallDelta(0, None, '{"ci')]
    assert reader.push('ty": "Par') == [ToolCallDelta(0, None, 'ty": "Par')]
    assert reader.push('is"') == [ToolCallDelta(0, None, 'is"')]
    assert reader.push('}}\n{"name": "add"}') == [
        ToolCallDelta(0, None, "}", done=True),
        ToolCallDelta(1, "add"),
        ToolCallDelta(1, None, "{}", done=True),
    ]
    assert reader.finish() == []


def test_text_is_not_held_back() -> None:
    reader = ToolCallReader(NAMES)
    assert reader.push("Well") == ["Well"] and reader.push(" {") == [" {"]


@pytest.mark.parametrize("text", [
    "```python\nprint(1)", '{"city": ', "[1, 2", "[get_we are", "```json\n{\"a\": 1", "<b>", "add.calls",
])  # fmt: skip
def test_what_cannot_become_a_call_is_not_held_back(text: str) -> None:
    reader = ToolCallReader(NAMES)
    assert join_parts(part for c in text for part in reader.push(c)) == (text, [])


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
    for _ in range(1500):
        text = "".join(chance.choices(parts, k=chance.randint(1, 5)))
        whole = read_answer(text, NAMES)
        n_calls += bool(whole.calls)
        letters = iter(text)
        assert all(c in letters for c in whole.text) and (whole.calls or whole.text == text)
        pieces = []
        while sum(map(len, pieces)) < len(text):
            at = sum(map(len, pieces))
            pieces.append(text[at : at + chance.choice([1, 1, 2, 7, 40])])
        assert read_pieces(pieces) == whole
    assert n_calls > 50


def test_calls_behind_the_last_that_may_come_are_text() -> None:
    two = f"{WEATHER}\n{WEATHER}"
    assert len(read_answer(two, NAMES).calls) == 2
    for text, rest in ((two, f"\n{WEATHER}"), (f"[{WEATHER}, {WEATHER}]", f", {WEATHER}]")):
        answer = read_answer(text, NAMES, most=1)
        assert len(answer.calls) == 1 and answer.text == rest
        assert read_pieces(list(text), most=1) == answer
    assert read_answer("[add(), add()]", NAMES, most=1).calls == []


def test_plain_calls_are_json_at_the_beginning() -> None:
    assert len(read_pieces([f" {WEATHER}\n"], plain=True).calls) == 1
    for text in (f"[{WEATHER}]", f"```json\n{WEATHER}\n```", "[add()]", "<function=add></function>"):
        assert read_pieces([text], plain=True) == (text, [])


def test_without_tools_nothing_is_a_call() -> None:
    assert read_answer(CALLS[0][0], []) == (CALLS[0][0], [])


def test_long_answers_are_read_in_time() -> None:
    """Ten times the length takes no hundred times the time."""
    for begun in (
        "",
        '{"name": "add", "parameters": {"a": "',
        "[add(a='",
        "add.call(query=",
        "<function=add>",
    ):
        for more in ("x", " ", "\n ", "```", "<", "\\"):
            text = begun + more * 60_000
            started = time.process_time()
            read_answer(text, NAMES)
            assert time.process_time() - started < 5


# JSON, character by character


def scanned(text: str) -> bool:
    scanner = JsonScanner()
    return all(map(scanner.push, text)) and scanner.is_whole


@pytest.mark.parametrize("text", [
    "{}", "[]", "{}{", "[1", "[1,]", '{"a":1,}', '{"a" 1}', "[01]", "[-]", "[1.]", "[1e5, -0.5E-3]", "[tru]",
    "[true,false , null]", '["\\x"]', '["\\u12"]', '["\t"]', '["\u00e9"]', '["\\ud83d\\ude00"]',
    '["\\ude00"]',
    '["\\ud83dx"]', "[ ]", "{ }", '{"a": {"b": [{}, [[]]]}}', "[nulll]", "[1 2]", '{1: 2}', "]", "[}", "[+1]",
])  # fmt: skip
def test_what_is_json(text: str) -> None:
    """Python's reader as the oracle; it takes halves of surrogate pairs, which are not text."""
    try:
        json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8")
        expected = True
    except ValueError:
        expected = False
    assert scanned(text) == expected


def test_random_json_is_json() -> None:
    """Texts of JSON's own parts: the scanner agrees with Python's reader on each."""
    chance = random.Random(3)
    parts = ["{", "}", "[", "]", ",", ":", '"a"', '"\\n"', "1", "-2.5e3", "true", "null", " ", "0"]
    n_json = 0
    for _ in range(5000):
        text = chance.choice("[{") + "".join(chance.choices(parts, k=chance.randint(1, 7)))
        try:
            json.loads(text)
            expected = True
        except ValueError:
            expected = False
        n_json += expected
        assert scanned(text.rstrip()) == expected, text
    assert n_json > 20


def test_objects_of_a_string() -> None:
    assert is_json_object(' {"a": 1}\n') and not is_json_object("[1]") and not is_json_object("{} x")
