"""The form of an answer, as llama-cpp-python's callers give it: `LlamaGrammar`, `response_format`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from pyllamacpu.errors import OptionError
from pyllamacpu.files import read_problem
from pyllamacpu.sampling.grammar import Grammar


class LlamaGrammar:
    """A grammar for the `grammar` argument. What cannot be enforced is an OptionError of the call that uses
    it, before anything is generated. Beyond llama-cpp-python: `from_regex`, `from_choice`, and Lark grammars.
    """

    def __init__(self, _grammar: str | Grammar) -> None:
        if not isinstance(_grammar, (str, Grammar)):
            raise OptionError(f"grammar={_grammar!r:.80}: give the text of a grammar")
        self.grammar = _grammar if isinstance(_grammar, Grammar) else Grammar.text(_grammar)

    @property
    def _grammar(self) -> str:
        return self.grammar.source

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> LlamaGrammar:
        """GBNF (`root ::= …`) or Lark (`start: …`)."""
        return cls(grammar)

    @classmethod
    def from_file(cls, file: str | PathLike[str], verbose: bool = True) -> LlamaGrammar:
        """A grammar in a file. Raises OptionError when it cannot be read."""
        if not isinstance(file, (str, PathLike)):
            raise OptionError(f"file={file!r:.80}: give the path of a grammar file")
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise OptionError(f"{os.fsdecode(file)}: {read_problem(error)}") from error
        if not text.strip():
            raise OptionError(f"{file}: there is no grammar in it")
        return cls(text)

    @classmethod
    def from_json_schema(
        cls, json_schema: str | Mapping[str, Any] | bool, verbose: bool = True
    ) -> LlamaGrammar:
        """JSON that fits a schema, which may be given as text."""
        return cls(Grammar.json_schema(json_schema))

    @classmethod
    def from_regex(cls, pattern: str) -> LlamaGrammar:
        """A text that a regular expression matches as a whole."""
        return cls(Grammar.regex(pattern))

    @classmethod
    def from_choice(cls, texts: Sequence[str]) -> LlamaGrammar:
        """One of some texts."""
        return cls(Grammar.choice(texts))

    def reset(self) -> None:
        """Nothing to do: each answer begins anew."""


def chosen_grammar(grammar: Any, response_format: Any = None) -> Grammar | None:
    """The form that an answer must have. Raises OptionError for what is none, and for two."""
    found = _of_format(response_format)
    if grammar is None:
        return found
    if found is not None:
        raise OptionError("give a grammar or a response_format, not both")
    if isinstance(grammar, LlamaGrammar):
        return grammar.grammar
    if isinstance(grammar, Grammar):
        return grammar
    if isinstance(grammar, str):
        return Grammar.text(grammar)
    raise OptionError(f"grammar: {grammar!r:.80} is not a LlamaGrammar")


def _of_format(value: Any) -> Grammar | None:
    """OpenAI's form, and llama-cpp-python's: {"type": "json_object", "schema": …}."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise OptionError(f"response_format: {value!r:.80} is not a mapping with a type")
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        schema = value.get("schema")
        return Grammar.json_object() if schema is None else Grammar.json_schema(schema)
    if kind == "json_schema":
        inner = value.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if schema is None:
            raise OptionError("response_format: json_schema has no schema")
        return Grammar.json_schema(schema)
    raise OptionError(f"response_format: the type {kind!r:.80}; allowed: text, json_object, json_schema")
