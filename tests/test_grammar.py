"""Answers in a given form: in the sampler, the scheduler, the `Llama` class and the commands.

Covers sampling/grammar.py, api/grammar.py, cli/grammar_options.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from cli_letters import Result, cli_home, run  # noqa: F401
from test_gbnf import accepted
from tiny_model import EOS, PIECES, byte, write_model

from pyllamacpu import Llama, LlamaGrammar
from pyllamacpu.api.grammar import chosen_grammar
from pyllamacpu.errors import OptionError
from pyllamacpu.sampling.grammar import Grammar, GrammarCompiler

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
QUESTION = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf", n_ctx=1024)


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[Llama]:
    with Llama(str(path), n_ctx=1024, n_threads=1, kv_type="f32") as opened:
        yield opened


@pytest.fixture(scope="module")
def compiler(llm: Llama) -> GrammarCompiler:
    assert llm.text_tokenizer is not None
    return GrammarCompiler(llm.text_tokenizer)


def walk(compiler: GrammarCompiler, grammar: Grammar, seed: int, tokenizer: Any) -> str:
    """A text of tokens that are drawn at random from those allowed, until it ends."""
    random, constraint = np.random.default_rng(seed), compiler.compile(grammar).start()
    tokens: list[int] = []
    while not constraint.is_complete:
        bits = np.unpackbits(constraint.mask().view(np.uint8), bitorder="little")[: len(PIECES)]
        token = int(random.choice(np.flatnonzero(bits)))
        if token == EOS:
            break
        constraint.accept(token)
        tokens.append(token)
        assert len(tokens) < 2000
    return tokenizer.decode_bytes(tokens, at_start=False).decode("utf-8")


FORMS: list[tuple[Grammar, Callable[[str], Any]]] = [
    (Grammar.regex(r"[a-z]{2,5}-\d{3}"), lambda t: re.fullmatch(r"[a-z]{2,5}-\d{3}", t)),
    (Grammar.choice(["yes", 'no "q" é\n']), lambda t: t in ("yes", 'no "q" é\n')),
    (Grammar.text('root ::= "a" [0-9]{1,4} ("x" | "y")'), lambda t: re.fullmatch(r"a[0-9]{1,4}[xy]", t)),
    (Grammar.text('start: "hi" /[0-9]{2}/'), lambda t: re.fullmatch(r"hi[0-9]{2}", t)),
    (Grammar.json_schema(PERSON), lambda t: set(json.loads(t)) == {"name", "age"}),
    (Grammar.json_schema({"type": "array", "items": {"enum": [1, "é"]}, "maxItems": 3}), json.loads),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(FORMS)))
def test_whatever_is_drawn_has_the_form(compiler: GrammarCompiler, llm: Llama, number: int) -> None:
    grammar, fits = FORMS[number]
    for seed in range(8):
        text = walk(compiler, grammar, seed, llm.text_tokenizer)
        assert fits(text) is not False and fits(text) is not None, text


@pytest.mark.parametrize(
    "grammar, says",
    [
        (Grammar("gbnf", "root ::= root"), "gbnf"),
        (Grammar("gbnf", "garbage"), "gbnf"),
        (Grammar("gbnf", ""), "gbnf"),
        (Grammar("lark", "start: nothing"), "lark"),
        (Grammar("regex", "("), "regex"),
        (Grammar("json_schema", '{"type": "nonsense"}'), "json_schema"),
        (Grammar("json_schema", '{"type": "string", "not": {"const": "x"}}'), "json_schema"),
        (Grammar("json_schema", '{"type": "object", "propertyNames": {"pattern": "a"}}'), "json_schema"),
        (
            Grammar("json_schema", '{"x-guidance": {"lenient": true}, "type": "string", "not": {}}'),
            "json_schema",
        ),
        (Grammar("json_schema", '{"$ref": "https://example.org/schema"}'), "json_schema"),
        (Grammar("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}'), "json_schema"),
    ],
)
def test_what_cannot_be_enforced_is_refused(compiler: GrammarCompiler, grammar: Grammar, says: str) -> None:
    with pytest.raises(OptionError, match=f"^{says}: "):
        compiler.compile(grammar)


PART = {"properties": {"x": {"type": "integer"}}, "required": ["x"]}
OTHER = {"properties": {"y": {"type": "integer"}}, "required": ["y"]}
DEFS = {"P": PART, "Q": {"type": "object", "properties": {"p": {"$ref": "#/$defs/P"}}, "required": ["p"]}}


@pytest.mark.parametrize(
    "schema, text, fits",
    [
        (PART, '{"x":1}', True),
        (PART, '{"x":1,"z":2}', False),
        ({"type": "object", "properties": {}}, '{"z":1}', False),
        ({"type": "object"}, '{"z":1}', True),
        ({**PART, "additionalProperties": True}, '{"x":1,"z":2}', True),
        ({**PART, "patternProperties": {"^z": {}}}, '{"x":1,"z":2}', True),
        ({**PART, "unevaluatedProperties": True}, '{"x":1,"z":2}', True),
        ({"properties": {"a": PART}, "required": ["a"]}, '{"a":{"x":1,"z":2}}', False),
        ({"items": PART, "type": "array"}, '[{"x":1,"z":2}]', False),
        ({"anyOf": [PART, {"type": "null"}], "title": "p"}, '{"x":1,"z":2}', False),
        ({"$ref": "#/$defs/P", "title": "p", "$defs": DEFS}, '{"x":1,"z":2}', False),
        ({"$ref": "#/$defs/Q", "$defs": DEFS}, '{"p":{"x":1,"z":2}}', False),
        ({"allOf": [PART], "title": "p"}, '{"x":1,"z":2}', False),
        ({"allOf": [PART, OTHER]}, '{"x":1,"y":2}', True),
        ({"allOf": [{"$ref": "#/$defs/P"}, OTHER], "$defs": DEFS}, '{"x":1,"y":2}', True),
        ({**PART, "anyOf": [OTHER, {"properties": {"z": {}}, "required": ["z"]}]}, '{"x":1,"y":2}', True),
        ({**OTHER, "$ref": "#/$defs/P", "$defs": DEFS}, '{"y":2,"x":1}', True),
        ({**PART, "required": ["x", "z"]}, '{"x":1,"z":2}', True),
        ({**PART, "anyOf": [{"required": ["z"]}, {"required": ["x"]}]}, '{"x":1,"z":2}', True),
    ],
)
def test_an_object_has_the_keys_that_it_lists(
    compiler: GrammarCompiler, schema: dict[str, Any], text: str, fits: bool
) -> None:
    """As in llama.cpp: others where the schema allows them, or parts of it would exclude each other."""
    constraint = compiler.compile(Grammar.json_schema(schema)).start()
    for token in map(byte, text.encode()):
        if not np.unpackbits(constraint.mask().view(np.uint8), bitorder="little")[token]:
            assert not fits
            return
        constraint.accept(token)
    assert fits


def test_a_schema_that_holds_itself_is_an_error() -> None:
    schema: dict[str, Any] = {"type": "object"}
    schema["properties"] = {"a": schema}
    with pytest.raises(OptionError, match="json_schema"):
        Grammar.json_schema(schema)


@pytest.mark.parametrize(
    ("low", "high"),
    [(1, 1.5), (0, 0.5), (0, 1), (-1.5, -1), (-0.5, 0), (10, 10.25), (0.5, 1), (-2, -1.5), (-1, 1)],
)
@pytest.mark.parametrize("exclusive", [("", ""), ("Minimum", ""), ("", "Maximum"), ("Minimum", "Maximum")])
def test_the_ends_of_ranges(
    compiler: GrammarCompiler, low: float, high: float, exclusive: tuple[str, str]
) -> None:
    lows, highs = exclusive
    keys = {"exclusiveMinimum" if lows else "minimum": low, "exclusiveMaximum" if highs else "maximum": high}
    schema = {"type": ["number", "null"], **keys}
    middle = (low + high) / 2
    for value in (low, high, middle, low - 1, high + 1, low - 0.25, high + 0.25, low + 0.125, high - 0.125):
        wanted = (low < value if lows else low <= value) and (value < high if highs else value <= high)
        for text in {f"{value:g}", f"-{value:g}".replace("--", "")} if value == 0 else {f"{value:g}"}:
            if text == "-0" and wanted:
                continue  # another spelling of 0, which need not come
            constraint = compiler.compile(Grammar.json_schema(schema)).start()
            assert accepted(constraint, text) == wanted, text


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "number", "minimum": float("inf")}, "a number is infinite"),
        ('{"type": "number", "maximum": 1e999}', "a number is infinite"),
        ({"const": {1}}, "set is nothing that JSON has"),
        ({"pattern": b"x"}, "bytes is nothing that JSON has"),
    ],
)
def test_what_is_not_json_is_refused_in_words(schema: Any, says: str) -> None:
    with pytest.raises(OptionError, match=f"json_schema: {says}"):
        Grammar.json_schema(schema)


def test_keys_that_are_numbers_and_other_mappings_are_taken(compiler: GrammarCompiler) -> None:
    schema: Any = MappingProxyType({"type": "object", "properties": MappingProxyType({1: {"const": 2}})})
    grammar = Grammar.json_schema(schema)
    assert json.loads(grammar.source)["properties"] == {"1": {"const": 2}}
    compiler.compile(grammar)


def test_refusals_of_patterns_and_files_say_why(compiler: GrammarCompiler, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"regex: .*unclosed group"):
        compiler.compile(Grammar.regex("a(b"))
    with pytest.raises(OptionError, match=r"x.gbnf: no such file$"):
        LlamaGrammar.from_file(tmp_path / "x.gbnf")
    with pytest.raises(OptionError, match="null"):
        LlamaGrammar.from_file("a\0b")


def test_grammars_are_compiled_once(compiler: GrammarCompiler) -> None:
    one = compiler.compile(Grammar.json_object())
    assert compiler.compile(Grammar.json_object()) is one
    first, second = one.start(), one.start()
    first.accept(PIECES.index("<0x7B>"))
    assert not np.array_equal(first.mask(), second.mask())


def test_what_is_kept_of_grammars_has_a_bound(llm: Llama) -> None:
    """A compiled grammar takes hundreds of bytes for each character of its source."""
    assert llm.text_tokenizer is not None
    compiler = GrammarCompiler(llm.text_tokenizer)
    large = [Grammar.choice([letter * 20_000, "b"]) for letter in "acdef"]
    for grammar in large:
        compiler.compile(grammar)
    kept = [grammar for grammar in large if grammar in compiler._compiled]
    assert kept == large[-3:]  # the newest, 64 Ki characters together
    compiler.compile(Grammar.choice(["a" * 70_000, "b"]))
    assert all(grammar in compiler._compiled for grammar in kept)  # too large to be kept
    with pytest.raises(OptionError, match="262144"):
        compiler.compile(Grammar.choice(["a" * 300_000]))


def test_a_token_that_is_not_allowed_is_an_error(compiler: GrammarCompiler) -> None:
    constraint = compiler.compile(Grammar.json_object()).start()
    with pytest.raises(OptionError, match="grammar: "):
        constraint.accept(PIECES.index("world"))


# In the class


def test_completions_have_their_form(llm: Llama) -> None:
    grammar = LlamaGrammar.from_regex(r"[a-z]{3}-[0-9]{2}")
    for seed in range(4):
        choice = llm("hello", grammar=grammar, seed=seed, max_tokens=40)["choices"][0]
        assert re.fullmatch(r"[a-z]{3}-[0-9]{2}", choice["text"]) and choice["finish_reason"] == "stop"
    streamed = llm("hello", grammar=grammar, seed=3, max_tokens=40, stream=True)
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == choice["text"]
    plain = llm("hello", seed=3, max_tokens=40, temperature=0)["choices"][0]["text"]
    assert llm("hello", seed=3, max_tokens=40, temperature=0)["choices"][0]["text"] == plain


def test_chats_have_their_form(llm: Llama) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    choice = llm.create_chat_completion(QUESTION, response_format=schema, seed=1, max_tokens=400)["choices"][
        0
    ]
    assert set(json.loads(choice["message"]["content"])) == {"name", "age"}
    old = {"type": "json_object", "schema": PERSON}
    choice = llm.create_chat_completion(QUESTION, response_format=old, seed=1, max_tokens=400)["choices"][0]
    assert set(json.loads(choice["message"]["content"])) == {"name", "age"}
    text = llm.create_chat_completion(QUESTION, response_format={"type": "text"}, max_tokens=3)
    assert text["choices"][0]["finish_reason"] == "length"


def test_an_answer_that_is_not_whole_says_so(llm: Llama) -> None:
    grammar = LlamaGrammar.from_json_schema(json.dumps(PERSON))
    choice = llm("hello", grammar=grammar, max_tokens=5, temperature=0)["choices"][0]
    assert choice["finish_reason"] == "length"
    with pytest.raises(ValueError):
        json.loads(choice["text"])


def test_a_form_that_ends_with_the_last_token_is_whole(llm: Llama) -> None:
    choice = llm("hello", grammar=LlamaGrammar.from_regex("q{5}"), max_tokens=5)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("qqqqq", "stop")


def test_answers_side_by_side_have_each_their_form(llm: Llama) -> None:
    patterns = [rf"[a-z]{{{n}}}[0-9]{{{n}}}" for n in range(1, 9)]

    def ask(pattern: str) -> str:
        return str(
            llm("x", grammar=LlamaGrammar.from_regex(pattern), seed=5, max_tokens=40)["choices"][0]["text"]
        )

    alone = [ask(pattern) for pattern in patterns]
    assert all(re.fullmatch(p, text) for p, text in zip(patterns, alone, strict=True))
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, patterns)) == alone


def test_generate_ends_with_its_form(llm: Llama) -> None:
    tokens = list(llm.generate(llm.tokenize(b"a"), grammar=LlamaGrammar.from_regex("[0-9]{6}"), temp=1.0))
    assert re.fullmatch(rb"[0-9]{6}", llm.detokenize(tokens))


def test_refusals_of_the_class(llm: Llama, tmp_path: Path) -> None:
    grammar = LlamaGrammar.from_string('root ::= "a"')
    llm.eval(llm.tokenize(b"a"))
    with pytest.raises(OptionError, match="single token"):
        llm.sample(grammar=grammar)
    with pytest.raises(OptionError, match="not a LlamaGrammar"):
        llm("a", grammar=object())
    with pytest.raises(OptionError, match="not both"):
        chosen_grammar(grammar, {"type": "json_object"})
    for value in ("json", {"type": "xml"}, {"type": "json_schema", "json_schema": {}}):
        with pytest.raises(OptionError, match="response_format"):
            chosen_grammar(None, value)
    with pytest.raises(OptionError, match="json_schema"):
        LlamaGrammar.from_json_schema("{")
    with pytest.raises(OptionError, match=r"none\.gbnf"):
        LlamaGrammar.from_file(tmp_path / "none.gbnf")
    (tmp_path / "a.gbnf").write_text('root ::= "a"\n')
    assert LlamaGrammar.from_file(tmp_path / "a.gbnf").grammar.kind == "gbnf"
    with pytest.raises(OptionError, match="choice"):
        Grammar.choice([])


# In the commands


def test_commands_take_forms(path: Path, tmp_path: Path, run: Callable[..., Result]) -> None:  # noqa: F811
    base = ("-m", str(path), "-t", "1", "-c", "512")
    result = run("complete", *base, "-p", "x", "--no-display-prompt", "--grammar", 'root ::= [0-9]{4} "\\n"?')
    assert re.fullmatch(r"[0-9]{4}\n{1,2}", result.out), result.err
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(PERSON))
    result = run("chat", *base, "-p", "x", "-st", "-jf", str(schema), "--temp", "1", "-s", "1")
    assert set(json.loads(result.out)) == {"name", "age"}, result.err
    result = run("complete", *base, "-p", "x", "--grammar", 'root ::= "a"', "-j", "{}")
    assert result.code == 2 and "one form" in result.err
    result = run("complete", *base, "-p", "x", "-j", '{"type": "string", "not": {}}')
    assert result.code == 1 and "json_schema" in result.err


def test_the_starter_model_writes_json(starter_model: Path) -> None:
    with Llama(str(starter_model), n_ctx=512) as llm:
        question = [{"role": "user", "content": "Describe a person named Ada, who is 36."}]
        answer = llm.create_chat_completion(
            question, response_format={"type": "json_object", "schema": PERSON}, temperature=0, max_tokens=60
        )
        found = json.loads(answer["choices"][0]["message"]["content"])
        assert isinstance(found["name"], str) and isinstance(found["age"], int)
