"""Schemas and grammars that cannot be enforced, or would take too long: refused before anything is generated,
with the keyword and the path. Covers sampling/schemas.py, sampling/grammar_limits.py.
"""

from __future__ import annotations

import faulthandler
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tiny_model import PIECES, write_model

from pyllamacpu import Llama
from pyllamacpu.errors import OptionError
from pyllamacpu.sampling.grammar import Grammar, GrammarCompiler
from pyllamacpu.sampling.grammar_limits import check_chains, check_length, check_repeats
from pyllamacpu.sampling.schemas import prepared

SECONDS = 2.0  # of this thread's time, for a grammar and 40 tokens


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrammarCompiler]:
    path: Path = write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    with Llama(str(path), n_ctx=64, n_threads=1) as llm:
        assert llm.text_tokenizer is not None
        compiler = GrammarCompiler(llm.text_tokenizer)
        compiler.compile(Grammar.json_object())
        yield compiler


TAGGED = {
    "oneOf": [
        {
            "type": "object",
            "properties": {"kind": {"const": k}, "n": {"type": "integer"}},
            "required": ["kind"],
        }
        for k in ("a", "b")
    ]
}
REFUSED: list[tuple[Any, str]] = [
    ({"type": "array", "uniqueItems": True}, "#: uniqueItems cannot"),
    ({"properties": {"a/b": {"items": {"not": {"const": 1}}}}}, "#/properties/a~1b/items: not cannot"),
    ({"prefixItems": [{}, {"contains": {}}]}, "#/prefixItems/1: contains cannot"),
    (
        {"$defs": {"x": {"propertyNames": {"pattern": "a"}}}, "$ref": "#/$defs/x"},
        r"#/\$defs/x: propertyNames cannot",
    ),
    ({"anyOf": [{"type": "null"}, {"type": "string", "format": "blah"}]}, "#/anyOf/1: format: 'blah' is not"),
    ({"properties": {"a": {"type": "string", "pattern": "(?=a)"}}}, "#/properties/a: pattern: look-around"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "#: oneOf cannot .* use anyOf"),
    ({"items": {"multipleOf": 1000003, "type": "integer"}}, "#/items: multipleOf: 1000003 is too large"),
    ({"items": {"type": "string", "pattern": "(a{200}){200}"}}, "#/items: pattern: it repeats"),
    ({"properties": {f"p{i}": {} for i in range(500)}}, "#: properties: 500 are not required"),
    ({"$ref": "#"}, "no finite JSON"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "#: dependentRequired"),
    ({"if": {"const": 1}, "then": {"const": 2}}, "#: if cannot"),
]


@pytest.mark.parametrize("schema, message", REFUSED)
def test_what_cannot_be_enforced_is_named_with_its_path(
    compiler: GrammarCompiler, schema: Any, message: str
) -> None:
    with pytest.raises(OptionError, match=f"^json_schema: {message}"):
        compiler.compile(Grammar.json_schema(schema))


def fitting(compiler: GrammarCompiler, grammar: Grammar, text: str) -> bool:
    """Whether a text of bytes has the form."""
    constraint = compiler.compile(grammar).start()
    try:
        for value in text.encode():
            constraint.accept(PIECES.index(f"<0x{value:02X}>"))
    except OptionError:
        return False
    return constraint.is_complete or bool(constraint.mask()[0] >> 2 & 1)  # 2 is EOS


CASES: list[tuple[Any, list[Any], list[Any]]] = [  # (schema, JSON that fits, JSON that does not)
    ({"type": "number", "minimum": 0.25, "exclusiveMaximum": 2}, [0.25, 1.99], [0.2, 0.249, 2]),
    ({"type": "integer", "multipleOf": 7}, [14, -21, 0], [15]),
    ({"type": "string", "format": "ipv4"}, ["127.0.0.1"], ["256.1.1.1", "1.1.1"]),
    (
        {"prefixItems": [{"const": 1}, {"type": "string"}], "items": False, "type": "array"},
        [[1, "a"]],
        [[2, "a"], [1, "a", 3]],
    ),
    ({"$defs": {"a/b~c": {"const": 5}}, "$ref": "#/$defs/a~1b~0c"}, [5], [6]),
    ({"type": "object", "maxProperties": 1}, [{}, {"a": 1}], [{"a": 1, "b": 2}]),
    ({"type": "array", "uniqueItems": False, "items": {"type": "integer"}}, [[1, 1]], [["a"]]),
    (TAGGED, [{"kind": "a", "n": 3}, {"kind": "b"}], [{"kind": "c"}, {"n": 3}]),
    (
        {
            "$defs": {str(i): one for i, one in enumerate(TAGGED["oneOf"])},
            "oneOf": [{"$ref": "#/$defs/0"}, {"$ref": "#/$defs/1"}],
        },
        [{"kind": "b", "n": 1}],
        [{"kind": "c"}],
    ),
]


@pytest.mark.parametrize("schema, good, bad", CASES)
def test_what_is_enforced(compiler: GrammarCompiler, schema: Any, good: list[Any], bad: list[Any]) -> None:
    grammar = Grammar.json_schema(schema)
    assert [value for value in good if not fitting(compiler, grammar, json.dumps(value))] == []
    assert [value for value in bad if fitting(compiler, grammar, json.dumps(value))] == []


def test_what_asks_for_nothing_is_left_out() -> None:
    names = {"uniqueItems": {"uniqueItems": False}, "oneOf": True}  # of properties, not keywords
    assert prepared({"properties": names, "uniqueItems": False}) == {
        "properties": {"uniqueItems": {}, "oneOf": True},
        "additionalProperties": False,
    }
    overlapping = {
        "oneOf": [
            {
                "type": "object",
                "properties": {"k": {"enum": [1, i]}},
                "required": ["k"],
                "additionalProperties": False,
            }
            for i in (2, 3)
        ]
    }
    assert prepared(overlapping) == overlapping


def doubled(n: int) -> str:
    rules = [f"{chr(97 + i)} ::= {chr(98 + i)} {chr(98 + i)}" for i in range(n)]
    return "\n".join(["root ::= a", *rules, f'{chr(97 + n)} ::= "x"'])


def chain(n: int, start: str, sign: str) -> str:
    return start + "".join(f'r{i} {sign} r{i + 1} | "x" r{i + 1}\n' for i in range(n)) + f'r{n} {sign} "y"\n'


def nested(depth: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def tree(depth: int) -> Any:
    """A schema whose parts are each used twice, again and again."""
    defs: Any = {"d0": {"type": "string"}}
    for i in range(1, depth):
        ref = {"$ref": f"#/$defs/d{i - 1}"}
        defs[f"d{i}"] = {"type": "object", "properties": {"l": ref, "r": ref}}
    return {"$defs": defs, "$ref": f"#/$defs/d{depth - 1}"}


BOMBS: dict[str, Callable[[], Grammar]] = {
    "repeats": lambda: Grammar.regex("(a{1000}){1000}"),
    "long": lambda: Grammar.regex("a{100000}"),
    "stars": lambda: Grammar.regex("((a*)*)*b"),
    "states": lambda: Grammar.regex("(a|b)*a(a|b){30}"),
    "parentheses": lambda: Grammar.regex("(" * 5000 + "a" + ")" * 5000),
    "words": lambda: Grammar.regex("|".join(f"w{i}[a-z]*z{i}" for i in range(1000))),
    "deep": lambda: Grammar.json_schema(nested(60)),
    "too deep": lambda: Grammar.json_schema(nested(400)),
    "tree": lambda: Grammar.json_schema(tree(40)),
    "wide": lambda: Grammar.json_schema({"properties": {f"p{i}": {} for i in range(3000)}}),
    "products": lambda: Grammar.json_schema(
        {"allOf": [{"anyOf": [{"properties": {f"a{i}{j}": {}}} for j in range(4)]} for i in range(8)]}
    ),
    "constant": lambda: Grammar.json_schema({"const": "x" * 20000}),
    "choices": lambda: Grammar.json_schema({"enum": [f"value {i}" for i in range(3000)]}),
    "multiple": lambda: Grammar.json_schema({"type": "integer", "multipleOf": 999983}),
    "doubled": lambda: Grammar.text(doubled(24)),
    "repeated": lambda: Grammar.text('root ::= a{900}\na ::= b{900}\nb ::= "x"{900}'),
    "ambiguous": lambda: Grammar.text('start: x*\nx: ("a" | "aa" | "aaa")+'),
    "recursion": lambda: Grammar.text('start: start start | "a"'),
    "chain": lambda: Grammar.text(chain(8000, "start: r0\n", ":")),
    "chain of GBNF": lambda: Grammar.text(chain(8000, "root ::= r0\n", "::=")),
    "chain of terminals": lambda: Grammar.text(
        chain(8000, "start: R0\n", ":").replace("r", "R").replace("staRt", "start")
    ),
    "nested groups": lambda: Grammar.text("root ::= " + "(" * 500 + '"a"' + ")" * 500),
}


@pytest.fixture(autouse=True)
def ends() -> Iterator[None]:
    """A mask that is never found ends the tests; nothing else would."""
    faulthandler.dump_traceback_later(300, exit=True, file=2)
    yield
    faulthandler.cancel_dump_traceback_later()


def write(compiler: GrammarCompiler, grammar: Grammar, choose: Callable[[npt.NDArray[np.intp]], int]) -> None:
    """Up to 40 of the tokens that may come next."""
    constraint = compiler.compile(grammar).start()
    for _ in range(40):
        tokens = np.flatnonzero(np.unpackbits(constraint.mask().view(np.uint8), bitorder="little"))
        tokens = tokens[tokens > 2]
        if constraint.is_complete or not len(tokens):
            break
        constraint.accept(choose(tokens))


@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused_or_harmless(compiler: GrammarCompiler, make: Callable[[], Grammar]) -> None:
    random, started = np.random.default_rng(1), time.thread_time()
    with suppress(OptionError):
        write(compiler, make(), lambda tokens: int(random.choice(tokens)))
    assert time.thread_time() - started < SECONDS


ENDLESS: dict[str, Callable[[], Grammar]] = {  # texts that can go on in one way only, without an end
    "title": lambda: Grammar.text('root ::= title "\\n"\ntitle ::= [A-Z] "\\n"+'),
    "anything": lambda: Grammar.text('root ::= x "b"\nx ::= [^a] "b"+'),
    "letters": lambda: Grammar.text('root ::= x "."\nx ::= [a-z]+ "."+'),
    "recursive": lambda: Grammar.text('root ::= "a" (root | "b" x)\nx ::= "b" x | "b"'),
    "lexeme": lambda: Grammar.text('start: x "b"\nx: /[^a]b+/'),
    "own options": lambda: Grammar.text('%llguidance {"no_forcing": false}\nstart: x "b"\nx: /[^a]b+/'),
    "within": lambda: Grammar.text('start: a\na: %lark {\nstart: x "b"\nx: /[^a]b+/\n}'),
    "rule": lambda: Grammar.text('start: "a" start // as long as it may be'),
    "regex": lambda: Grammar.regex("[^a]b+b"),
    "pattern": lambda: Grammar.json_schema({"type": "string", "pattern": '^[^"a]b+b$'}),
    "schema": lambda: Grammar.json_schema({"$defs": {"a": {"prefixItems": [{"$ref": "#/$defs/a"}]}}}),
    "ends in quotes": lambda: Grammar.json_schema({"type": "array", "items": {"pattern": '[^a]"+$'}}),
}


@pytest.mark.parametrize("make", ENDLESS.values(), ids=ENDLESS)
def test_texts_without_an_end_are_left_to_the_limit(
    compiler: GrammarCompiler, make: Callable[[], Grammar]
) -> None:
    """What may come next is told without following it to its end."""
    started = time.thread_time()
    with suppress(OptionError):
        write(compiler, make(), lambda tokens: int(tokens[0]))
    assert time.thread_time() - started < SECONDS


def test_chains_of_rules_are_counted() -> None:
    check_chains(chain(1400, "start: r0\n", ":"), "lark")
    check_chains("start: " + " | ".join(f"r{i}" for i in range(5000)) + "\n" + 'r1: "x"\n' * 5000, "lark")
    for source in (chain(1500, "start: r0\n", ":"), chain(1500, "start: r1500\n", ":") + 'r1500: "x" r0\n'):
        with pytest.raises(OptionError, match="lark: more than 1500 rules are one in another"):
            check_chains(source, "lark")


@pytest.mark.parametrize(
    "pattern",
    [
        r"\{9{9}",
        "[a{99999}]b",
        "a{99}b{99}c{99}",
        "(a{99}|b{99})",
        r"[\]{99999}]",
        "[]{99999}]",
        "(a{3,9}(b{2,}c){4,}){7}",
        "x{",
        "x{,5}",
        ")(",
        "[a",
        "\\",
    ],
)
def test_patterns_that_are_small(pattern: str) -> None:
    check_repeats(pattern, "regex")


@pytest.mark.parametrize(
    "pattern",
    ["a{10001}", "(a{101}){100}", "((a{30}b{3}){30}){30}", "(?:[ab]{500}){0,500}", "(x|y{999999999999})"],
)
def test_patterns_that_are_large(pattern: str) -> None:
    with pytest.raises(OptionError, match="more than 10000 times"):
        check_repeats(pattern, "regex")


def test_grammars_of_people_are_not_long() -> None:
    for path in sorted(Path(__file__).parent.rglob("*.gbnf")):
        check_length(path.read_text(encoding="utf-8"), "gbnf")
    check_length("root ::= root root | root", "gbnf")
    check_length("a ::= b\n" * 1000 + "b ::= a", "gbnf")
    check_length('root ::= (item ",")*\nitem ::= [a-z]{1,64} "{99999999}" ::', "gbnf")
    check_length(doubled(10), "gbnf")
    with pytest.raises(OptionError, match="no text of the rule"):
        check_length(doubled(18), "gbnf")
