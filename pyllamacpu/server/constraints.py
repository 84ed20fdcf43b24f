"""The form of an answer in a request's body: as OpenAI, Anthropic, Ollama, llama.cpp and vLLM name it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pyllamacpu.errors import OptionError
from pyllamacpu.sampling.grammar import Grammar
from pyllamacpu.server.fields import Fields, wrong

# vLLM's older names, and the keys of its `structured_outputs`.
_GUIDED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}


def openai_grammar(fields: Fields) -> Grammar | None:
    """`response_format`, llama.cpp's `grammar` and `json_schema`, vLLM's `structured_outputs` and `guided_*`.
    Raises HTTPError for more than one.
    """
    found = {name: grammar for name, grammar in _given(fields) if grammar is not None}
    if len(found) > 1:
        raise fields.wrong(list(found)[1], f"does not go with {next(iter(found))}: an answer has one form")
    return next(iter(found.values()), None)


def _given(fields: Fields) -> list[tuple[str, Grammar | None]]:
    rows: list[tuple[str, Grammar | None]] = [
        ("response_format", response_grammar(fields, "response_format"))
    ]
    rows += [(name, _vllm(name, kind, fields.raw(name))) for name, kind in _GUIDED.items()]
    rows.append(("structured_outputs", _structured(fields)))
    rows.append(("grammar", _make("grammar", Grammar.text, fields.text("grammar") or None)))
    rows.append(("json_schema", _make("json_schema", Grammar.json_schema, fields.raw("json_schema"))))
    return rows


def response_grammar(fields: Fields, name: str) -> Grammar | None:
    """OpenAI's form of an answer in the field `name`. The schema stands within "json_schema", or beside the
    type, as responses have it.
    """
    if name not in fields:
        fields.ignore(name)
        return None
    own = fields.nested(name)
    kind = own.choice("type", ("text", "json_object", "json_schema"))
    if kind is None:
        raise own.wrong("type", "is missing")
    if kind == "text":
        return None
    if kind == "json_object":  # llama.cpp takes a schema here too
        schema = own.raw("schema")
        return Grammar.json_object() if schema is None else _schema(f"{own.where}schema", schema)
    own.ignore("name", "description", "strict")
    inner = own.nested("json_schema")
    inner.ignore("name", "description", "strict")
    if "schema" in inner:
        return _schema(f"{inner.where}schema", inner.raw("schema"))
    if own.raw("schema") is not None:
        return _schema(f"{own.where}schema", own.raw("schema"))
    raise inner.wrong("schema", "is missing")


def _structured(fields: Fields) -> Grammar | None:
    if "structured_outputs" not in fields:
        fields.ignore("structured_outputs")
        return None
    own = fields.nested("structured_outputs")
    kinds = [kind for kind in ("json", "regex", "choice", "grammar", "json_object") if kind in own]
    if len(kinds) != 1:
        raise fields.wrong("structured_outputs", "give one of json, regex, choice, grammar, json_object")
    if kinds == ["json_object"]:
        return Grammar.json_object() if own.flag("json_object") else None
    return _vllm(f"structured_outputs.{kinds[0]}", kinds[0], own.raw(kinds[0]))


def _vllm(name: str, kind: str, value: Any) -> Grammar | None:
    makers: dict[str, Any] = {
        "json": Grammar.json_schema,
        "regex": Grammar.regex,
        "choice": Grammar.choice,
        "grammar": Grammar.text,
    }
    if kind in ("regex", "grammar") and value is not None and not isinstance(value, str):
        raise wrong(name, "must be a string")
    return _make(name, makers[kind], value)


def anthropic_grammar(fields: Fields, strict: bool) -> Grammar | None:
    """`output_config.format`, or the older `output_format`."""
    found = []
    for name in ("output_config", "output_format"):
        value = fields.raw(name)
        if value is None:
            continue
        form = own = Fields(value, f"{name}.")
        if name == "output_config":
            form = own.nested("format")
            own.finish(strict)
        if "type" not in form and name == "output_config":
            continue
        form.choice("type", ("json_schema",))
        if "schema" not in form:
            raise form.wrong("schema", "is missing")
        found.append(_schema(f"{form.where}schema", form.raw("schema")))
    if len(found) > 1:
        raise fields.wrong("output_format", "does not go with output_config")
    return found[0] if found else None


def ollama_grammar(fields: Fields) -> Grammar | None:
    """`format`: "json", or a schema."""
    value = fields.raw("format")
    if value in (None, ""):
        return None
    if value == "json":
        return Grammar.json_object()
    if not isinstance(value, dict):
        raise fields.wrong("format", 'must be "json" or a JSON schema')
    return _schema("format", value)


def _schema(name: str, value: Any) -> Grammar | None:
    if not isinstance(value, (dict, bool)):
        raise wrong(name, "must be a JSON schema: an object")
    return _make(name, Grammar.json_schema, value)


def _make(name: str, maker: Any, value: Any) -> Grammar | None:
    try:
        return None if value is None else replace(maker(value), given_as=name)
    except OptionError as error:
        raise wrong(name, str(error).partition(": ")[2] or str(error)) from None
