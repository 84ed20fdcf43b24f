"""Patterns of JSON schemas mean what ECMA-262 says. Covers sampling/ecma_regex.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_gbnf import accepted
from tiny_model import write_model

from pyllamacpu import Llama
from pyllamacpu.sampling.ecma_regex import rust_pattern
from pyllamacpu.sampling.grammar import Grammar, GrammarCompiler

PATTERNS: list[tuple[str, list[str], list[str]]] = [
    (r"^[[]$", ["["], ["a", "[["]),
    (r"^[[a]]$", ["[]", "a]"], ["a", "["]),
    (r"^[[:alpha:]]$", [":]", "a]", "[]"], ["a", "b", "b]"]),
    (r"^[a&&b]$", ["a", "&", "b"], ["&&"]),
    (r"^[a-z&&[^b]]$", ["a]", "&]", "^]", "b]"], ["a", "x"]),
    (r"^[a~~b]$", ["a", "~", "b"], ["~~"]),
    (r"^[+--]$", ["+", ",", "-"], ["a", "*"]),
    (r"^[a-c-]$", ["a", "b", "-"], ["d"]),
    (r"^[-a]$", ["-", "a"], ["b"]),
    (r"^[\w-.]+$", ["a.b-c", "-"], ["a b", "/"]),
    (r"^[a-\d]$", ["a", "-", "7"], ["b"]),
    (r"^[^[\]]+$", ["ab"], ["[", "]"]),
    (r"^[\]\\[]$", ["]", "\\", "["], ["a"]),
    (r"^[a^]$", ["a", "^"], ["b"]),
    (r"^\<b\>$", ["<b>"], ["b"]),
    (r"^a\.[.]\/$", ["a../"], ["abb/"]),
    (r"^\u0061\x62$", ["ab"], ["a"]),
    (r"^(a|[b-d]{2})?$", ["", "a", "cd"], ["b"]),
    (r"^\[[0-9]\]$", ["[1]"], ["1"]),
]


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrammarCompiler]:
    path: Path = write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf", n_ctx=64)
    with Llama(str(path), n_ctx=64, n_threads=1, kv_type="f32") as opened:
        assert opened.text_tokenizer is not None
        yield GrammarCompiler(opened.text_tokenizer)


@pytest.mark.parametrize("case", PATTERNS, ids=[pattern for pattern, _, _ in PATTERNS])
def test_patterns_mean_what_they_say(
    compiler: GrammarCompiler, case: tuple[str, list[str], list[str]]
) -> None:
    pattern, good, bad = case
    schema = {"type": "string", "pattern": pattern}
    for text in (*good, *bad):
        constraint = compiler.compile(Grammar.json_schema(schema)).start()
        assert accepted(constraint, json.dumps(text)) == (text in good), text
    keys: dict[str, Any] = {
        "type": "object",
        "patternProperties": {pattern: {}},
        "additionalProperties": False,
    }
    for text in (*good, *bad):
        constraint = compiler.compile(Grammar.json_schema(keys)).start()
        assert accepted(constraint, json.dumps({text: 1})) == (text in good), text


@pytest.mark.parametrize("case", PATTERNS, ids=[pattern for pattern, _, _ in PATTERNS])
def test_the_table_is_right(case: tuple[str, list[str], list[str]]) -> None:
    """By another implementation, where that takes the pattern."""
    jsonschema_rs = pytest.importorskip("jsonschema_rs")
    pattern, good, bad = case
    if pattern in (r"^[\w-.]+$", r"^[a-\d]$", r"^\<b\>$"):
        pytest.skip("taken otherwise there; browsers read it so")
    is_valid = jsonschema_rs.Draft202012Validator({"type": "string", "pattern": pattern}).is_valid
    assert [is_valid(text) for text in (*good, *bad)] == [True] * len(good) + [False] * len(bad)


@pytest.mark.parametrize(
    "pattern", ["a", "[", "[^", "[a-", "\\", "[\\", "a[b\\-]c", "\\p{L}[\\pN]", "(?:x)", ""]
)
def test_what_needs_no_change_has_none(pattern: str) -> None:
    assert rust_pattern(pattern) == pattern


def test_characters_by_number() -> None:
    assert rust_pattern(r"\cA\0[\b\cz]\b") == r"\x01\x00[\x08\x1a]\b"
