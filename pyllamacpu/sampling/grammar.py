"""Answers in a given form: JSON schemas, regular expressions, choices, GBNF and Lark grammars.

llguidance (https://github.com/guidance-ai/llguidance) turns a grammar into the tokens that may come next. It
fails closed: what cannot be enforced is an OptionError before anything is generated.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pyllamacpu.errors import OptionError
from pyllamacpu.sampling.grammar_limits import check_chains, check_length, check_repeats
from pyllamacpu.sampling.rows import Mask
from pyllamacpu.text.marked_calls import MarkedForm
from pyllamacpu.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Kind = Literal["json_schema", "regex", "choice", "gbnf", "lark", "tool_calls"]

_CACHED = 32  # compiled grammars of a model
# Characters of their sources together, and of one: a compiled grammar takes up to 450 bytes for each of them.
_CACHED_SOURCE = 1 << 16
_MAX_SOURCE = 1 << 18
_ARGUMENTS = re.compile(r"#(?:/anyOf/(\d+))?/properties/parameters")  # of one of the tools
_SLICES = [rf'[^"\\\x00-\x1F\x7F]{{1,{most}}}' for most in ("10", "")]
_MAX_FORCED = 128  # bytes of a text without a choice that are tokenized at a time
_LARK_START = re.compile(r"^\s*start\s*:(?!:)", re.MULTILINE)  # GBNF may have a rule `start ::=` too
# Without this, text that a grammar leaves no choice about is followed to its end before the next token: that
# end may never come (`x "b"` with x: /[^a]b+/, which takes every b). The last of such lines counts.
_NO_FORCING = '\n%llguidance {"no_forcing": true}\n'
# Of GBNF for a mask: the parser's items, where characters may be lexemes, and the lexer's fuel, where one
# lexeme may be a whole grammar. The library's own limits are 50,000 and 200,000; these take 50 and 10 ms.
_GBNF_ITEMS, _GBNF_FUEL = 500_000, 2_000_000
_GBNF_ROW = 5_000  # items of one character (the library: 2000)
# White space between the parts of JSON: without a bound a model can write it for ever.
_JSON_OPTIONS = {"whitespace_pattern": r"[ \n]{0,2}", "lenient": False}


@dataclass(frozen=True)
class Grammar:
    """The form of an answer. `source` is the JSON text of a schema or of a list of choices, a regular
    expression (Rust's syntax, of the whole answer), or a grammar; for tool calls JSON too (`tool_calls`).
    `given_as`: the field or argument that it came in, by which refusals call it.
    """

    kind: Kind
    source: str
    given_as: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        return self.given_as or ("tools" if self.kind == "tool_calls" else self.kind)

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool | str) -> Grammar:
        """Of a schema, or its text. Raises OptionError for text that is not JSON."""
        from pyllamacpu.sampling.schemas import prepared

        try:
            value = json.loads(schema) if isinstance(schema, str) else schema
            if value is False or not isinstance(value, (Mapping, bool)):
                raise ValueError("must be an object that some JSON fits")
            return cls("json_schema", json.dumps(prepared(value) if isinstance(value, Mapping) else {}))
        except (ValueError, TypeError, RecursionError) as error:
            raise OptionError(f"json_schema: {error}") from None

    @classmethod
    def json_object(cls) -> Grammar:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        return cls("regex", pattern)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Grammar:
        """One of some texts. Raises OptionError for none."""
        is_list = isinstance(texts, Sequence) and not isinstance(texts, str)
        if not is_list or not texts or not all(isinstance(t, str) and t for t in texts):
            raise OptionError("choice: give at least one text, and none that is empty")
        return cls("choice", json.dumps(list(texts)))

    @classmethod
    def tool_calls(
        cls, call: Mapping[str, Any], several: bool, or_text: bool, or_json: Grammar | None = None
    ) -> Grammar:
        """A call in JSON, of the schema `call`; `several`: or more of them, a line or a semicolon between
        two; `or_text`: or a text that does not begin as a call does, with a brace; `or_json`: or an answer of
        that schema.
        """
        from pyllamacpu.sampling.schemas import prepared

        try:
            parts: dict[str, Any] = {"call": prepared(call), "several": several, "or_text": or_text}
            if or_json is not None:
                parts |= {"answer": json.loads(or_json.source), "answer_name": or_json.name}
            return cls("tool_calls", json.dumps(parts))
        except (ValueError, TypeError, RecursionError) as error:
            raise OptionError(f"tools: {error}") from None

    def in_marks(self, form: MarkedForm) -> Grammar:
        """Of tool calls: the same calls in a form with marks instead of JSON."""
        return replace(self, source=json.dumps({**json.loads(self.source), "marked": asdict(form)}))

    @classmethod
    def text(cls, source: str) -> Grammar:
        """GBNF (llama.cpp's notation, `root ::= …`) or Lark (`start: …`), whichever it is."""
        return cls("lark" if _LARK_START.search(source) else "gbnf", source)


class ToolSchemaError(OptionError):
    """The schema of the arguments of `tool` that cannot be enforced, and why."""

    def __init__(self, tool: str, reason: str) -> None:
        super().__init__(f"tools: {tool!r:.80}: parameters: {reason}")
        self.tool, self.reason = tool, reason


class Constraint:
    """How far one answer has come in its grammar. `spare` gives a matcher of the same language that has other
    limits, for when the lexer has reached its own.
    """

    def __init__(self, matcher: LLMatcher, words: int, spare: Callable[[], LLMatcher] | None = None) -> None:
        self._matcher, self._spare = matcher, spare
        self._tokens: list[int] = []
        self._mask = np.zeros(words, np.int32)

    def mask(self) -> Mask:
        """The tokens that may come next; the array is filled anew by the next call. Raises OptionError."""
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if self._uses_spare():
            self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check()
        return self._mask

    def accept(self, token: int) -> None:
        """`token` has come. Raises OptionError for one that was not allowed."""
        if not self._matcher.consume_token(token) and self._uses_spare():
            self._matcher.consume_token(token)
        self._check()
        if self._spare is not None:
            self._tokens.append(token)

    def _uses_spare(self) -> bool:
        """Whether there was a reason to, and a spare."""
        if self._spare is None or not self._matcher.is_error():
            return False
        if "lexer error" not in self._matcher.get_error():
            return False
        try:
            self._matcher, self._spare = self._spare(), None
        except OptionError:
            return False
        return self._matcher.consume_tokens(self._tokens)

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise OptionError(f"grammar: {_first_line(self._matcher.get_error())}")


class CompiledGrammar:
    """A grammar for one vocabulary; each answer starts its own `Constraint`. For any thread."""

    def __init__(self, matcher: LLMatcher, words: int) -> None:
        self._matcher, self._words = matcher, words
        self._lock = threading.Lock()
        self._spare: CompiledGrammar | Callable[[], CompiledGrammar] | None = None

    def start(self) -> Constraint:
        with self._lock:
            spare = None if self._spare is None else self._start_spare
            return Constraint(self._matcher.deep_copy(), self._words, spare)

    def has_spare(self, make: Callable[[], CompiledGrammar]) -> None:
        """`make`: compiles the same language for other limits."""
        self._spare = make

    def _start_spare(self) -> LLMatcher:
        with self._lock:
            if not isinstance(self._spare, CompiledGrammar):
                assert self._spare is not None
                self._spare = self._spare()
            return self._spare.start()._matcher


class GrammarCompiler:
    """Compiles grammars for one tokenizer, and keeps the last ones. For any thread, but not for one that must
    not wait: a first grammar takes about half a second, for the vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._compiled: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Raises OptionError for what cannot be enforced."""
        with self._lock:
            if (found := self._compiled.get(grammar)) is not None:
                self._compiled.move_to_end(grammar)
                return found
            if self._vocabulary is None:
                self._vocabulary = _vocabulary(self._tokenizer)
            vocabulary = self._vocabulary
        found = _compile(grammar, vocabulary, self._tokenizer.special_tokens)
        with self._lock:
            if len(grammar.source) <= _CACHED_SOURCE:
                self._compiled[grammar] = found
            while (
                len(self._compiled) > _CACHED or sum(len(g.source) for g in self._compiled) > _CACHED_SOURCE
            ):
                self._compiled.popitem(last=False)
        return found

    def _n_characters(self) -> int:
        return sum(len(grammar.source) for grammar in self._compiled)


def _compile(grammar: Grammar, vocabulary: LLTokenizer, tokens: Mapping[str, int]) -> CompiledGrammar:
    if len(grammar.source) > _MAX_SOURCE:
        raise OptionError(f"{grammar.name}: {len(grammar.source)} characters; allowed: {_MAX_SOURCE}")
    if grammar.kind in ("regex", "lark"):
        check_repeats(grammar.source, grammar.name)
    if grammar.kind == "lark":
        check_chains(grammar.source, grammar.name)
        check_length(grammar.source, grammar.name)
    if grammar.kind != "gbnf":
        return _compile_as(grammar, vocabulary, partial(_definition, tokens=tokens))

    def in_characters() -> CompiledGrammar:
        return _compile_as(grammar, vocabulary, lambda grammar: _gbnf_definition(grammar, True))

    try:
        compiled = _compile_as(grammar, vocabulary, _gbnf_definition)
    except OptionError as error:
        if "lexer error" not in str(error):
            raise
        return in_characters()
    compiled.has_spare(in_characters)
    return compiled


def _compile_as(
    grammar: Grammar, vocabulary: LLTokenizer, definition: Callable[[Grammar], str]
) -> CompiledGrammar:
    """`definition` tells it in llguidance's own form."""
    from llguidance import LLMatcher, LLParserLimits

    is_gbnf = grammar.kind == "gbnf"
    try:
        limits = LLParserLimits(
            precompute_large_lexemes=False,
            verbose_errors=False,
            max_items_in_row=_GBNF_ROW if is_gbnf else None,
            step_max_items=_GBNF_ITEMS if is_gbnf else None,
            step_lexer_fuel=_GBNF_FUEL if is_gbnf else None,
        )
        matcher = LLMatcher(vocabulary, definition(grammar), log_level=0, limits=limits)
    except ValueError as error:  # OptionError is one
        raise _refusal(grammar, str(error).removeprefix(f"{grammar.kind}: ")) from None
    if matcher.is_error():
        raise _refusal(grammar, matcher.get_error())
    if warnings := matcher.get_grammar_warnings():
        raise _refusal(grammar, warnings[0])
    compiled = CompiledGrammar(matcher, -(-vocabulary.vocab_size // 32))
    try:
        mask = compiled.start().mask()  # some faults show only here
    except OptionError as error:
        from pyllamacpu.sampling.schemas import in_words

        raise OptionError(f"{grammar.name}: {in_words(str(error).removeprefix('grammar: '))}") from None
    if not mask.any():
        raise OptionError(f"{grammar.name}: no text of this model's tokens has that form")
    return compiled


def _refusal(grammar: Grammar, message: str) -> OptionError:
    """The error of a grammar that cannot be enforced; for a schema, with the path and the keyword."""
    if grammar.kind not in ("json_schema", "tool_calls"):
        return OptionError(f"{grammar.name}: {_first_line(message)}")
    from pyllamacpu.sampling.schemas import where_refused

    schema: Any = json.loads(grammar.source)
    if grammar.kind == "tool_calls":
        answer, name, schema = schema.get("answer", {}), schema.get("answer_name"), schema["call"]
        if _error_of(answer):
            return OptionError(f"{name}: {where_refused(answer, _error_of)}")
    found = where_refused(schema, _error_of)
    if grammar.kind == "tool_calls" and (arguments := _ARGUMENTS.match(found)):
        call = schema if arguments[1] is None else schema["anyOf"][int(arguments[1])]
        name = call["properties"]["name"]["const"]
        return ToolSchemaError(name, f"#{found[arguments.end() :]}")
    return OptionError(f"{grammar.name}: {found}")


def _error_of(schema: Any) -> str:
    """Why a schema cannot be enforced; empty if it can."""
    from llguidance import LLMatcher

    try:
        options: Any = _JSON_OPTIONS
        definition = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options)
        _, messages = LLMatcher.validate_grammar_with_warnings(definition)
    except ValueError as error:
        return str(error)
    return "\n".join(messages)


def _gbnf_definition(grammar: Grammar, in_characters: bool = False) -> str:
    from llguidance import LLMatcher

    from pyllamacpu.sampling.gbnf_lark import gbnf_to_lark

    lark = gbnf_to_lark(grammar.source, in_characters)
    check_chains(lark, grammar.kind)
    return LLMatcher.grammar_from_lark(lark + _NO_FORCING)


def _definition(grammar: Grammar, tokens: Mapping[str, int]) -> str:
    """The grammar in llguidance's own form. `tokens`: control tokens, by their spelling."""
    from llguidance import LLMatcher

    if grammar.kind == "json_schema":
        options: Any = _JSON_OPTIONS
        return LLMatcher.grammar_from_json_schema(grammar.source, overrides=options)
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.source)
    if grammar.kind == "choice":
        texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in json.loads(grammar.source))
        return LLMatcher.grammar_from_lark(f"start: {texts}")
    if grammar.kind == "tool_calls":
        from pyllamacpu.sampling.call_grammar import calls_in_lark

        lark = calls_in_lark(_JSON_OPTIONS, tokens, **json.loads(grammar.source))
        return LLMatcher.grammar_from_lark(lark)
    return LLMatcher.grammar_from_lark(grammar.source + _NO_FORCING)


class _Tokens:
    """A vocabulary as llguidance's wrapper wants it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        special = {i for i in range(tokenizer.n_vocab) if tokenizer.is_special(i)}
        self.eos_token_id, self.bos_token_id = min(tokenizer.eog), tokenizer.bos
        self.tokens = [tokenizer.token_bytes(i, special=True) for i in range(tokenizer.n_vocab)]
        self.special_token_ids = sorted(special | tokenizer.eog)
        # Any token of plain text: what follows it gets no space before its first word.
        self._before = [next((i for i in range(tokenizer.n_vocab) if i not in special), 0)]
        self._encode = tokenizer.encode_fragment

    def __call__(self, text: bytes) -> list[int]:
        """The tokens of a text that the grammar leaves no choice about; only the first of them counts, so a
        long text is cut.
        """
        return self._encode(text[:_MAX_FORCED], self._before)


def _vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    """Two of the library's three slices of a vocabulary (tokens that may stand anywhere in a string of JSON):
    each is a copy of most of it, 7 MB for 128,000 tokens, and the third made no mask faster.
    """
    from llguidance import LLTokenizer, TokenizerWrapper  # type: ignore[attr-defined,unused-ignore]

    if not tokenizer.eog:
        raise OptionError("grammar: this vocabulary names no token that ends a text, so no form can end")
    tokens = TokenizerWrapper(_Tokens(tokenizer))
    made = LLTokenizer(tokens, eos_token=sorted(tokenizer.eog), slices=_SLICES)
    tokens.tokens, tokens._gtokenizer.tokens = [], []  # copied
    return made


def _first_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith("error: ")), None)
    if reason and "regex parse error" in lines[0]:  # below the drawing of its place
        return f"{lines[0].split(' (in regex)')[0]}: {reason.removeprefix('error: ')}"[:300]
    return lines[0][:300] if lines else "it cannot be used"
