"""Grammars of answers that are tool calls, in llguidance's Lark."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pyllamacpu.sampling.schemas import moved_back
from pyllamacpu.text.marked_calls import MarkedForm

_NO_MARK = r"(?s:([^>]|>[^>]|>>[^>])*)"  # a text without functionary's mark


def calls_in_lark(
    json_options: Mapping[str, Any],
    tokens: Mapping[str, int],
    *,
    call: dict[str, Any],
    several: bool,
    or_text: bool,
    answer: dict[str, Any] | None = None,
    answer_name: str = "",
    marked: dict[str, Any] | None = None,
) -> str:
    """Of the parts of `Grammar.tool_calls`. `tokens`: the vocabulary's control tokens, by their spelling."""

    def in_json(schema: dict[str, Any]) -> str:
        return f"%json {json.dumps({**schema, 'x-guidance': json_options})}"

    if marked is None:
        rules = {"call": in_json(call)}
        calls = "call (/[;\\n] ?/ call)*" if several else "call"
        text = r"/(?s:([ \t\r\n]*[^ \t\r\n{].*)?)/"
    else:
        form = MarkedForm(**marked)
        mark = _spelled(form.mark, tokens)
        rules = _marked_rules(form, call, tokens, in_json)
        begun = "" if form.prompted else f"{mark} "
        calls = f"{begun}call ({mark} call)*" if several else f"{begun}call"
        text = _text_beside(form, tokens)
    alternatives = [calls]
    if or_text:
        rules["text"] = text
        alternatives.append("text")
    if answer is not None:
        rules["answer"] = in_json(answer)
        alternatives.append("answer")
    return "\n".join([f"start: {' | '.join(alternatives)}", *(f"{k}: {v}" for k, v in rules.items()), ""])


def _marked_rules(
    form: MarkedForm, call: dict[str, Any], tokens: Mapping[str, int], in_json: Any
) -> dict[str, str]:
    """A call without its mark: the name, what stands between, and the arguments of its schema."""
    places = [f"#/anyOf/{i}" for i in range(len(call["anyOf"]))] if "anyOf" in call else ["#"]
    between = _spelled(form.between, tokens)
    an_id = f"{_spelled(form.id_mark, tokens)} /[a-zA-Z0-9]{{9}}/" if form.id_mark else ""
    rules = {"call": " | ".join(f"call_{i}" for i in range(len(places)))}
    for i, (one, place) in enumerate(zip(call.get("anyOf", [call]), places, strict=True)):
        name = json.dumps(one["properties"]["name"]["const"], ensure_ascii=False)
        rules[f"call_{i}"] = " ".join(filter(None, [name, an_id, between, f"arguments_{i}"]))
        arguments = moved_back(one["properties"]["parameters"], f"{place}/properties/parameters")
        rules[f"arguments_{i}"] = in_json(arguments)
    return rules


def _text_beside(form: MarkedForm, tokens: Mapping[str, int]) -> str:
    """Text that is not read as a call: as the form writes it, or not begun as a call is."""
    if form.speech:
        return f"{json.dumps(form.speech + form.between)} /{_NO_MARK}/"
    barred = "" if form.mark in tokens else f"\\{form.mark[0]}"
    return rf"/(?s:([ \t\r\n]*[^ \t\r\n{{{barred}].*)?)/"


def _spelled(mark: str, tokens: Mapping[str, int]) -> str:
    """A mark as the vocabulary has it: one control token, else its text."""
    if not mark:
        return ""
    return f"<[{tokens[mark]}]>" if mark in tokens else json.dumps(mark)
