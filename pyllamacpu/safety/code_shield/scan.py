"""Code Shield: rules against insecure code, in process.

The shape is that of PyPI's `codeshield`. What is different: nothing fails open (a rule that cannot be applied
makes the code insecure, with the reason in `errors`), findings of severity error block whatever tool found
them, a language's rules see the fenced blocks of that language, and semgrep is not needed for Python.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import regex

from pyllamacpu.errors import OptionError, PyllamacpuError
from pyllamacpu.safety.code_shield.code_text import CodePart, code_parts
from pyllamacpu.safety.code_shield.issues import CodeShieldScanResult, Issue, Language, Severity, Treatment
from pyllamacpu.safety.code_shield.python_code import CodeTooLarge
from pyllamacpu.safety.code_shield.python_scan import scan_python
from pyllamacpu.safety.code_shield.regex_scan import RuleTimeout, scan_regex, search
from pyllamacpu.safety.code_shield.rules import (
    SCANNED,
    SETS,
    RegexRule,
    RuleSet,
    SemgrepRule,
    regex_rules,
    semgrep_rules,
)
from pyllamacpu.safety.code_shield.semgrep_scan import find_semgrep, scan_semgrep

MAX_CHARS = 1_000_000
SECONDS = 5.0  # for all rules but semgrep's


class CodeShield:
    """Judges code.

        result = CodeShield().scan("import os\\nos.system(command)")
        result.is_insecure, result.issues_found, result.recommended_treatment

    Args:
        rules: the set, "codeshield" or the larger "cyberseceval".
        semgrep: the program for other languages' rules; None: as found on the PATH, False: not used.
    """

    def __init__(
        self, rules: RuleSet = "codeshield", semgrep: str | os.PathLike[str] | bool | None = None
    ) -> None:
        if not isinstance(rules, str) or rules not in SETS:
            raise OptionError(f"rules={rules!r:.40}: give {' or '.join(SETS)}")
        if not isinstance(semgrep, (str, os.PathLike, bool, type(None))) or semgrep == "":
            raise OptionError(f"semgrep={semgrep!r:.40}: give the path of the program, None or False")
        self.rules = rules
        if semgrep is None or isinstance(semgrep, bool):
            self.semgrep = None if semgrep is False else find_semgrep()
        else:
            self.semgrep = os.fspath(semgrep)

    @classmethod
    async def scan_code(cls, code: str, language: Language | str | None = None) -> CodeShieldScanResult:
        """As `codeshield.cs.CodeShield.scan_code`."""
        return await asyncio.to_thread(cls().scan, code, language)

    def scan(self, code: str, language: Language | str | None = None) -> CodeShieldScanResult:
        """Whether `code` is insecure; a text of a model may have it in fenced blocks. Without `language` each
        part is judged as what its fence says, or by the rules of all languages in SCANNED.
        """
        if not isinstance(code, str):
            raise OptionError(f"code: give a text, not {type(code).__name__}")
        scan = _Scan(self, None if language is None else _language(language))
        try:
            scan.run(code)
        except PyllamacpuError as error:
            scan.errors.append(str(error))
        return scan.result()


def _language(given: Language | str) -> Language:
    try:
        return Language(given)
    except ValueError:
        raise OptionError(
            f"language={given!r:.40}: known are {', '.join(one.value for one in Language)}"
        ) from None


class _Scan:
    """One scan's findings."""

    def __init__(self, shield: CodeShield, language: Language | None) -> None:
        self._shield, self._language = shield, language
        self._end = time.monotonic() + SECONDS
        self.issues: dict[tuple[str | None, int | None], Issue] = {}
        self.errors: list[str] = []
        self.not_covered: dict[str, None] = {}

    def run(self, code: str) -> None:
        if len(code) > MAX_CHARS:
            raise CodeTooLarge(f"a text of more than {MAX_CHARS} characters is not judged: send it in parts")
        for part in code_parts(code, self._language):
            for issue in self._part(part):
                found = replace(issue, line=(issue.line or 1) + part.first_line - 1)
                self.issues.setdefault((found.pattern_id, found.line), found)

    def _part(self, part: CodePart) -> Iterator[Issue]:
        languages = SCANNED if part.language is None else (part.language,)
        for rule in self._regex_rules(part, languages):
            self._check_time()
            yield from scan_regex(rule, part.text)
        if Language.PYTHON in languages:
            self._check_time()
            rules = semgrep_rules(Language.PYTHON, self._shield.rules)
            yield from scan_python(rules, part.text, calls_too=part.language is not None)
        if not part.is_prose:
            yield from self._by_semgrep(part, languages)

    def _check_time(self) -> None:
        if time.monotonic() > self._end:
            raise RuleTimeout(f"judging took more than {SECONDS:g} s")

    def _regex_rules(self, part: CodePart, languages: Sequence[Language]) -> list[RegexRule]:
        """Prose around code has secrets, but no calls."""
        if part.is_prose:
            languages = (Language.LANGUAGE_AGNOSTIC,)
        found = [rule for own in languages for rule in regex_rules(own, self._shield.rules)]
        return [*dict.fromkeys(found)]  # several languages have C's and those of any language

    def _by_semgrep(self, part: CodePart, languages: Sequence[Language]) -> list[Issue]:
        """Only the rules whose quick search finds something: a run takes seconds."""
        wanted: dict[Language, list[SemgrepRule]] = {}
        for language in languages:
            if language is Language.PYTHON or (language is Language.CPP and Language.C in languages):
                continue
            for rule in semgrep_rules(language, self._shield.rules):
                if not rule.quick or search(regex.compile(rule.quick), part.text):
                    wanted.setdefault(language, []).append(rule)
        if not wanted:
            return []
        if self._shield.semgrep is None:
            for language, rules in wanted.items():
                names = ", ".join(rule.id for rule in rules)
                self.not_covered[f"{language.value}: {names} (semgrep is not installed)"] = None
            return []
        return scan_semgrep(self._shield.semgrep, dict.fromkeys(wanted, part.text), wanted)

    def result(self) -> CodeShieldScanResult:
        issues = sorted(self.issues.values(), key=lambda issue: issue.line or 0)
        if self.errors or any(issue.severity is Severity.ERROR for issue in issues):
            treatment = Treatment.BLOCK
        else:
            treatment = Treatment.WARN if issues else Treatment.IGNORE
        return CodeShieldScanResult(
            bool(issues or self.errors),
            issues or None,
            treatment,
            tuple(self.errors),
            tuple(self.not_covered),
        )


def coverage(rules: RuleSet, has_semgrep: bool) -> list[tuple[str, int, int]]:
    """(language, rules that are applied, rules that are not) for each language."""
    rows = []
    for language in Language:
        if language is Language.LANGUAGE_AGNOSTIC:
            continue
        n = len(regex_rules(language, rules))
        n_semgrep = len(semgrep_rules(language, rules))
        runs = has_semgrep or language is Language.PYTHON
        rows.append((language.value, n + (n_semgrep if runs else 0), 0 if runs else n_semgrep))
    return rows
