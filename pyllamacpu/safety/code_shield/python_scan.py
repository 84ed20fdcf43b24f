"""Semgrep's rules for Python, evaluated here: which of its matches stand after all conditions.

Matches are places with what the variables stand for. `patterns` is "and": the smaller of two places of which
one is inside the other; what `pattern-not` finds goes. Source: semgrep.dev/docs/writing-rules/rule-syntax
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pyllamacpu.safety.code_shield.issues import Analyzer, Issue, Language
from pyllamacpu.safety.code_shield.python_code import CodeTooLarge, parse_python
from pyllamacpu.safety.code_shield.python_patterns import Code, Match, find, unify
from pyllamacpu.safety.code_shield.rules import SemgrepRule

_POSITIVE = ("pattern", "patterns", "pattern-either", "pattern-inside")
_NEGATIVE = ("pattern-not", "pattern-not-inside")
_MAX_PAIRS = 1_000_000  # of matches that are compared, for one rule


def scan_python(rules: Sequence[SemgrepRule], text: str, calls_too: bool) -> list[Issue]:
    """What the rules find; `calls_too` as `parse_python` has it. Raises CodeTooLarge."""
    try:
        code = Code(parse_python(text, calls_too))
        return [issue for rule in rules for issue in _Evaluation(code).issues(rule)]
    except (RecursionError, MemoryError):
        raise CodeTooLarge("Python code that is nested too deeply to be judged") from None


class _Evaluation:
    """Of one rule on one code."""

    def __init__(self, code: Code) -> None:
        self._code = code
        self._n_pairs = 0

    def issues(self, rule: SemgrepRule) -> list[Issue]:
        found = self._positive({key: rule.source[key] for key in _POSITIVE if key in rule.source})
        places = dict.fromkeys(match.start for match in found)
        return [_issue(rule, line, column) for line, column in places]

    def _positive(self, condition: Mapping[str, Any]) -> list[Match]:
        ((key, value),) = condition.items()
        if key == "patterns":
            return self._all(value)
        if key == "pattern-either":
            return [match for one in value for match in self._positive(one)]
        return find(value, self._code)

    def _all(self, conditions: Sequence[Mapping[str, Any]]) -> list[Match]:
        found: list[Match] | None = None
        for condition in conditions:
            if not condition.keys() <= set(_POSITIVE):
                continue
            own = self._positive(condition)
            found = own if found is None else self._both(found, own)
            if not found:
                return []
        found = found or []
        for condition in conditions:
            ((key, value),) = condition.items()
            if key in _NEGATIVE and found:
                found = self._without(found, find(value, self._code))
            elif key == "metavariable-regex":
                found = [match for match in found if _fits(match, value)]
            elif key not in (*_POSITIVE, *_NEGATIVE):
                raise CodeTooLarge(f"a rule has the condition {key}, which is not known here")
        return found

    def _both(self, some: Sequence[Match], others: Sequence[Match]) -> list[Match]:
        self._count(len(some) * len(others))
        found = []
        for a in some:
            for b in others:
                small = a if a.is_inside(b) else b if b.is_inside(a) else None
                if small is not None and (bound := unify(a.bindings, b.bindings)) is not None:
                    found.append(small._replace(bindings=bound))
        return found

    def _without(self, some: Sequence[Match], others: Sequence[Match]) -> list[Match]:
        self._count(len(some) * len(others))
        return [
            a
            for a in some
            if not any(a.is_inside(b) and unify(a.bindings, b.bindings) is not None for b in others)
        ]

    def _count(self, n_pairs: int) -> None:
        self._n_pairs += n_pairs
        if self._n_pairs > _MAX_PAIRS:
            raise CodeTooLarge("Python code with too many places to be judged")


def _fits(match: Match, condition: Mapping[str, str]) -> bool:
    text = match.bindings.get(condition["metavariable"].removeprefix("$"))
    return text is not None and re.match(condition["regex"], text.strip("\"'")) is not None


def _issue(rule: SemgrepRule, line: int, column: int) -> Issue:
    return Issue(
        rule.message,
        rule.cwe,
        rule.severity,
        line=line,
        char=column + 1,
        analyzer=Analyzer.AST,
        pattern_id=rule.id,
        language=Language.PYTHON,
    )
