"""The rules of Code Shield: data in rules.json, from PyPI's `codeshield` (MIT; LICENSE.rules beside it).

Two sets, as there: "codeshield" has what judges answers, "cyberseceval" adds what a benchmark counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import regex

from pyllamacpu.safety.code_shield.issues import Language, Severity

RuleSet = Literal["codeshield", "cyberseceval"]
SETS: tuple[RuleSet, ...] = ("codeshield", "cyberseceval")
RULES_FILE = Path(__file__).with_name("rules.json")

# languages that others' rules hold for, too
_BASES: dict[Language, tuple[Language, ...]] = {
    Language.CPP: (Language.C,),
    Language.OBJECTIVE_C: (Language.C,),
    Language.OBJECTIVE_CPP: (Language.OBJECTIVE_C, Language.CPP),
}
SCANNED = tuple(map(Language, ("c", "cpp", "csharp", "java", "javascript", "php", "python", "rust")))
"""Those that code is judged by when its language is not known."""

_LEFT_TO_SEMGREP = ("bugprone-strcpy",)  # as those that no set has: here they always hold

_SEVERITIES = {"error": Severity.ERROR, "warning": Severity.WARNING}


@dataclass(frozen=True)
class RegexRule:
    id: str
    cwe: str
    severity: Severity
    message: str
    pattern: regex.Pattern[str]
    language: Language


@dataclass(frozen=True)
class SemgrepRule:
    """`source`: the rule as semgrep reads it."""

    id: str
    cwe: str
    severity: Severity
    message: str
    source: Mapping[str, Any]

    @property
    def quick(self) -> str:
        """A pattern without which the rule cannot match; "" when there is none. Some are written as if a name
        were the whole text.
        """
        pattern = str(self.source["metadata"].get("prescan_regex") or "")
        return pattern.removeprefix("^").removesuffix("$")


@cache
def _read() -> dict[str, dict[str, list[dict[str, Any]]]]:
    rules: dict[str, dict[str, list[dict[str, Any]]]] = json.loads(RULES_FILE.read_text("utf-8"))
    return rules


def _with_bases(language: Language) -> list[Language]:
    """The languages whose rules hold for `language`, each once."""
    found = [language]
    for base in _BASES.get(language, ()):
        found += _with_bases(base)
    return list(dict.fromkeys(found))


@cache
def regex_rules(language: Language, rules: RuleSet) -> tuple[RegexRule, ...]:
    """With those for any language, and those that the sets leave to semgrep, which may not be there."""
    languages = [language] if language is Language.LANGUAGE_AGNOSTIC else _with_bases(language)
    languages += [Language.LANGUAGE_AGNOSTIC]
    return tuple(
        _regex_rule(rule, own)
        for own in dict.fromkeys(languages)
        for rule in _read()["regex"].get(own.value, ())
        if rules in rule["sets"] or not rule["sets"] or rule["id"] in _LEFT_TO_SEMGREP
    )


def _regex_rule(rule: Mapping[str, Any], language: Language) -> RegexRule:
    severity = _severity(rule["severity"])
    pattern = regex.compile(rule["pattern"])
    return RegexRule(rule["id"], rule["cwe"], severity, rule["message"], pattern, language)


@cache
def semgrep_rules(language: Language, rules: RuleSet) -> tuple[SemgrepRule, ...]:
    """Of the language; C++ has C's. (semgrep does not read Objective-C.)"""
    own = Language.C if language is Language.CPP else language
    found = _read()["semgrep"].get(own.value, ())
    return tuple(
        SemgrepRule(
            rule["id"], rule["metadata"]["cwe_id"], _severity(rule["severity"]), rule["message"], rule
        )
        for rule in found
        if rules in rule["metadata"]["sets"]
    )


def _severity(word: str) -> Severity:
    """Whatever case it is written in; semgrep's INFO is advice."""
    return _SEVERITIES.get(word.lower(), Severity.ADVICE)
