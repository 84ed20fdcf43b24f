"""GBNF means what it does to llama.cpp.

Covers sampling/gbnf.py, sampling/gbnf_graph.py, sampling/gbnf_automaton.py, sampling/gbnf_lexemes.py and
sampling/gbnf_lark.py.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gbnf_cases import ARITHMETIC, INVALID, JSON, C
from tiny_model import EOS, PIECES, write_model

from pyllamacpu import Llama, LlamaGrammar
from pyllamacpu.errors import OptionError
from pyllamacpu.sampling.gbnf import Choice, Expression, Reference, Repeat, Sequence, parse_gbnf
from pyllamacpu.sampling.gbnf_lark import gbnf_to_lark
from pyllamacpu.sampling.grammar import Constraint, Grammar, GrammarCompiler

FIXTURE = json.loads((Path(__file__).parent / "fixtures/gbnf.json").read_text(encoding="utf-8"))
VERDICTS: dict[str, dict[str, bool]] = FIXTURE["verdicts"]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    path = write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf", n_ctx=512)
    with Llama(str(path), n_ctx=512, n_threads=1, kv_type="f32") as opened:
        yield opened


@pytest.fixture(scope="module")
def compiler(llm: Llama) -> GrammarCompiler:
    assert llm.text_tokenizer is not None
    return GrammarCompiler(llm.text_tokenizer)


def may_end(constraint: Constraint) -> bool:
    return constraint.is_complete or bool(constraint.mask()[0] >> EOS & 1)


def accepted(constraint: Constraint, text: str) -> bool:
    """Of what has come; every byte must be in the mask before it comes."""
    for byte in text.encode():
        token = PIECES.index(f"<0x{byte:02X}>")
        if constraint.is_complete:
            return False
        shown = bool(constraint.mask()[token // 32] >> token % 32 & 1)
        try:
            constraint.accept(token)
        except OptionError:
            assert not shown
            return False
        assert shown
    return may_end(constraint)


@pytest.mark.parametrize("grammar", VERDICTS, ids=range(len(VERDICTS)))
@pytest.mark.parametrize("in_characters", [False, True])
def test_texts_that_llama_cpp_accepts(
    llm: Llama, grammar: str, in_characters: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as large lexemes as there may be, and with none but characters."""
    if in_characters:
        monkeypatch.setattr("pyllamacpu.sampling.gbnf_lexemes._MAX_ROUNDS", 0)
    assert llm.text_tokenizer is not None
    compiled = GrammarCompiler(llm.text_tokenizer).compile(Grammar.text(grammar))
    assert {text: accepted(compiled.start(), text) for text in VERDICTS[grammar]} == VERDICTS[grammar]


@pytest.mark.parametrize("grammar", INVALID)
def test_what_llama_cpp_refuses(compiler: GrammarCompiler, grammar: str) -> None:
    with pytest.raises(OptionError, match=r"^gbnf: (line \d+: |there is no rule called root)"):
        compiler.compile(Grammar("gbnf", grammar))


@pytest.mark.parametrize(
    "grammar, says",
    [
        ('root ::= "a"\nx ::= "\\q"', r"line 2: the escape `\\q` is not known"),
        ('root ::= "a"\n\nx ::= nothing', "line 3: there is no rule called 'nothing'"),
        ("root ::= [z-a]", "line 1: the range 'z' to 'a' is empty"),
        ('root ::= "a"{3,2}', "the least is more than the most"),
        ('root ::= "a"{99999}', "more than 10000 times"),
        ("root ::= []", "line 1: a character class is empty"),
        ("root ::= <think>", "line 1: tokens"),
        ('root ::= "\\U00110000"', "line 1: .* hexadecimal digits"),
        ("root ::= " + "(" * 101 + '"a"' + ")" * 101, "nested more than 100 deep"),
        ('root ::= "a" root', "'root' has no finite text"),
        ('root ::= "\\uD800"', "'root' has no finite text"),
        ('root ::= "a"{900} x\nx ::= ("b"{900}){900}', "no text of the rule"),
    ],
)
def test_refusals_name_the_line(grammar: str, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        gbnf_to_lark(grammar)


@pytest.mark.parametrize(
    "grammar, good, bad",
    [
        ('root ::= "a"\n   "b"\n | "c"\nx ::= "d"', ["ab", "c"], ["a", "abc"]),  # lines outside groups
        ('root ::= root "a" | "b"', ["b", "baa"], ["a", "bb"]),
        ('root ::= e\ne ::= e [-+] e | [0-9]+ | "(" e ")"', ["1+(23-4)"], ["1+", "(1"]),
        ('root ::= a_b\na_b ::= [a\\-z]{,2}', ["", "-z"], ["b", "aaa"]),
        ('root ::= "a" (root | "b" never)? \nnever ::= "c" never', ["a", "aa"], ["ab"]),
        ('root ::= x{0,900}\nx ::= ("b"{0,900}){0,900}', ["", "bbbb"], ["a"]),
        ('root ::= ("" | "a"){2}', ["", "a", "aa"], ["aaa"]),
        ('root ::= x\nx ::= "(" x ")" x | [a-z]* [0-9]*', ["", "ab1", "(a)1", "()"], ["1a", "(", "a("]),
    ],
)  # fmt: skip
def test_what_goes_beyond(compiler: GrammarCompiler, grammar: str, good: list[str], bad: list[str]) -> None:
    compiled = compiler.compile(Grammar.text(grammar))
    assert [text for text in good if not accepted(compiled.start(), text)] == []
    assert [text for text in bad if accepted(compiled.start(), text)] == []


def test_lexemes_are_as_large_as_they_may_be() -> None:
    """A grammar without recursion is one; strings and numbers of JSON are; names beside keywords are."""
    assert gbnf_to_lark('root ::= x "!"\nx ::= [a-z]+ (" " [a-z]+)*').count("/") == 2
    assert r"\x{22}(?:(?:\x{5C}" in gbnf_to_lark(JSON)
    assert re.search(r"T\d+: /return/", gbnf_to_lark(C))
    assert r": /[a-z](?:[0-9\x{5F}a-z])*/" in gbnf_to_lark(ARITHMETIC)  # without the space after it
    assert "/b/" in gbnf_to_lark('root ::= x{0,900}\nx ::= ("b"{0,900}){0,900}')  # as one it is too large


# Random grammars, and a simple matcher

ALPHABET = "abcéè"  # two of which begin with the same byte
ATOMS = [
    '"a"',
    '"b"',
    '"ab"',
    '"é"',
    '"èa"',
    "[ab]",
    "[a-c]",
    "[^a]",
    "[é-ë]",
    "[^è]",
    ".",
    '""',
    "x",
    "y",
    "root",
]


def draw(rng: random.Random, depth: int = 2) -> str:
    def item() -> str:
        if depth == 0 or rng.random() < 0.7:
            return rng.choice(ATOMS)
        return f"({draw(rng, depth - 1)})"

    def sequence() -> str:
        marks = ["", "", "", "*", "+", "?", "{2}", "{0,2}", "{1,}"]
        return " ".join(item() + rng.choice(marks) for _ in range(rng.choice([1, 2, 2, 3])))

    return " | ".join(sequence() for _ in range(rng.choice([1, 1, 2])))


class Matcher:
    """Which parts of one text each rule fits, found by repeating until nothing is new."""

    def __init__(self, rules: dict[str, Expression], text: str) -> None:
        self._rules, self._text = rules, text
        self._found: dict[tuple[str, int], frozenset[int]] = {}
        before = None
        while before != self._found:
            before = dict(self._found)
            for name in rules:
                for i in range(len(text) + 1):
                    self._found[name, i] = self._ends(rules[name], i)

    def fits(self) -> bool:
        return len(self._text) in self._found["root", 0]

    def _ends(self, e: Expression, i: int) -> frozenset[int]:
        if isinstance(e, Reference):
            return self._found.get((e.name, i), frozenset())
        if isinstance(e, Choice):
            return frozenset().union(*(self._ends(part, i) for part in e.parts))
        if isinstance(e, Sequence):
            ends = frozenset({i})
            for part in e.parts:
                ends = frozenset().union(*(self._ends(part, end) for end in ends))
            return ends
        if isinstance(e, Repeat):
            return self._repeated(e, i)
        is_there = i < len(self._text) and any(a <= ord(self._text[i]) <= b for a, b in e.ranges)
        return frozenset({i + 1}) if is_there else frozenset()

    def _repeated(self, e: Repeat, i: int) -> frozenset[int]:
        ends, found = frozenset({i}), frozenset({i} if e.least == 0 else ())
        for times in range(1, (e.most or e.least + len(self._text) + 1) + 1):
            ends = frozenset().union(*(self._ends(e.part, end) for end in ends))
            found |= ends if times >= e.least else frozenset()
        return found


def texts_of(compiler: GrammarCompiler, grammar: str, longest: int) -> set[str]:
    """All accepted texts; whatever has come must be able to go on or end."""
    found: set[str] = set()
    start = compiler.compile(Grammar.text(grammar)).start()
    open_ = [("", start)]
    while open_:
        text, so_far = open_.pop()
        if may_end(so_far):
            found.add(text)
        if so_far.is_complete or len(text) == longest:
            continue
        assert so_far.mask().any(), (grammar, text)
        for letter in ALPHABET:
            after = Constraint(so_far._matcher.deep_copy(), so_far._mask.size)
            try:
                for byte in letter.encode():
                    after.accept(PIECES.index(f"<0x{byte:02X}>"))
            except OptionError:
                continue
            open_.append((text + letter, after))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_random_grammars_mean_what_they_say(compiler: GrammarCompiler, seed: int) -> None:
    rng, compared = random.Random(seed), 0
    every = [""]
    for text in every:
        if len(text) < 3:
            every += [text + letter for letter in ALPHABET]
    while compared < 15:
        grammar = f"root ::= {draw(rng)}\nx ::= {draw(rng, 1)}\ny ::= {draw(rng, 1)}\n"
        rules = parse_gbnf(grammar)
        try:
            found = texts_of(compiler, grammar, 3)
        except OptionError as error:
            assert "no finite text" in str(error), grammar
            continue
        assert found == {text for text in every if Matcher(rules, text).fits()}, grammar
        compared += 1


# Generation


@pytest.mark.parametrize(
    "grammar, pattern",
    [
        ('root ::= [a-z]+ "ing"', r"[a-z]+ing"),
        ('root ::= reason " Answer: " ("yes" | "no")\nreason ::= [a-zA-Z ,.]{1,20}', r".* Answer: (yes|no)"),
        ('root ::= "<" root ">" | [0-9]{3}', r"<*[0-9]{3}>*"),
    ],
)
def test_answers_have_their_form(llm: Llama, grammar: str, pattern: str) -> None:
    for seed in range(3):
        choice = llm("x", grammar=LlamaGrammar.from_string(grammar), seed=seed, max_tokens=400)["choices"][0]
        if choice["finish_reason"] == "stop":
            assert re.fullmatch(pattern, choice["text"]), choice["text"]


def test_a_text_without_an_end_ends_at_the_limit(llm: Llama) -> None:
    grammar = LlamaGrammar.from_string('root ::= x "b"\nx ::= [^a] "b"+')
    choice = llm("x", grammar=grammar, max_tokens=20, seed=1, temperature=1.0)["choices"][0]
    assert re.fullmatch(r"[^a]b*", choice["text"], re.DOTALL), choice["text"]


def test_too_much_work_is_an_error_of_the_one_request(llm: Llama) -> None:
    hostile = 'root ::= e\ne ::= e e e | e e | . | "a" e | [^b] e | [b-z] e' + ' | . "x" e' * 300
    started = time.thread_time()
    try:
        llm("x", grammar=LlamaGrammar.from_string(hostile), max_tokens=10, seed=1)
    except OptionError as error:
        assert "grammar: " in str(error) or "gbnf: " in str(error)
    assert time.thread_time() - started < 3
    assert llm("x", grammar=LlamaGrammar.from_string('root ::= "abc"'))["choices"][0]["text"] == "abc"


@pytest.mark.parametrize("fuel", [1, 100, 1000])
def test_what_is_too_much_for_the_lexer_is_read_in_characters(
    llm: Llama, fuel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the start, or from where the lexer gives up."""
    pattern = "([a-z ]*[ai][a-z ]{8}){5}"
    monkeypatch.setattr("pyllamacpu.sampling.grammar._GBNF_FUEL", fuel)
    assert llm.text_tokenizer is not None
    compiled = GrammarCompiler(llm.text_tokenizer).compile(Grammar.text(f"root ::= {pattern}"))
    for text in ("a1", "iiiiiiii " * 5 + "a", "a new kind of text " * 6, "abcdefghi" * 5 + "j"):
        constraint = compiled.start()
        assert accepted(constraint, text) == bool(re.fullmatch(pattern, text))
        assert constraint._spare is None or text == "a1"


def test_large_grammars_are_translated_soon() -> None:
    started = time.thread_time()
    chain = "\n".join(f"r{i} ::= r{i + 1} | [a-z]{{{i % 9 + 1}}} r{i // 2}" for i in range(2000))
    gbnf_to_lark(f'root ::= r0\n{chain}\nr2000 ::= "x"')
    words = " | ".join(f'"word {i} " root' for i in range(1000))
    gbnf_to_lark(f"root ::= {words} | [a-z]+")
    gbnf_to_lark("root ::= " + " ".join('("a"? "b"*)*' for _ in range(300)))
    assert time.thread_time() - started < 5


OPTIONAL = {
    "[a-c]?": ("", "a", "b", "c"),
    '"d"?': ("", "d"),
    '("e" [ab])?': ("", "ea", "eb"),
    '("jk" | "j" [ab])?': ("", "jk", "ja", "jb"),
    '("" | "g"{0,2})': ("", "g", "gg"),
}


def matches(parts: list[str], text: str) -> bool:
    ends = {0}
    for part in parts:
        ends = {end + len(word) for end in ends for word in OPTIONAL[part] if text.startswith(word, end)}
    return len(text) in ends


@pytest.mark.parametrize("form", ["{0}", "[(] root [)] | {0}", '[(] root [)] | ({0} "-")+'])
def test_hundreds_of_optional_parts(compiler: GrammarCompiler, form: str) -> None:
    """llama.cpp takes them too."""
    rng = random.Random(len(form))
    parts = rng.choices(list(OPTIONAL), k=300)
    grammar = "root ::= " + form.format(" ".join(parts))
    # One lexeme: in characters a parser has too many items when the vocabulary has words of such letters.
    assert len(re.findall(r"^T\d+: /.{99}", gbnf_to_lark(grammar), re.MULTILINE)) == 1
    compiled = compiler.compile(Grammar.text(grammar))
    found = set()
    for n in (0, 1, 2, 5, 20, 150, 300) * 6:
        words = (rng.choice(OPTIONAL[part]) for part in rng.choices(parts, k=n) if rng.random() < 0.6)
        own = (rng.choice(OPTIONAL[part]) for part in parts[:n])
        text = "".join(rng.choice([words, own]))
        wanted = matches(parts, text)
        text += "-" * ("-" in form)
        depth = rng.choice([0, 0, 2]) if "root" in form else 0
        assert accepted(compiled.start(), "(" * depth + text + ")" * depth) == wanted, text
        found.add(wanted)
    assert found == {True, False}


def test_masks_of_recursive_grammars_are_soon_there(llm: Llama, compiler: GrammarCompiler) -> None:
    constraint = compiler.compile(Grammar.text(JSON)).start()
    started = time.thread_time()
    assert accepted(constraint, '{"a": [' + '{"b": "' + "text " * 200 + '"}, 1.5]}')
    assert time.thread_time() - started < 2
    assert np.any(compiler.compile(Grammar.text(C)).start().mask())
