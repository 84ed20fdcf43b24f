"""Code Shield: rules against insecure code, in process.

The shape is that of PyPI's `codeshield`. What is different: nothing fails open (a rule that cannot be applied
makes the code insecure, with the reason in `errors`), findings of severity error block whatever tool found
them, a language's rules see the fenced blocks of that language, and semgrep is not needed for Python.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import regex

from pyllamacpu.errors import OptionError, PyllamacpuError
from pyllamacpu.safety.code_shield.code_text import CodePart, code_parts
from pyllamacpu.safety.code_shield.issues import CodeShieldScanResult, Issue, Language, Severity, Treatment
from pyllamacpu.safety.code_shield.python_scan import scan_python
from pyllamacpu.safety.code_shield.regex_scan import RuleTimeout, scan_regex, search
from pyllamacpu.safety.code_shield.rules import (
    SCANNED,
    SETS,
    RegexRule,
    RuleSet,
    regex_rules,
    semgrep_rules,
)
from pyllamacpu.safety.code_shield.semgrep_scan import Semgrep, Wanted, find_semgrep

MAX_CHARS = 1_000_000
SECONDS = 5.0  # for all rules but semgrep's


class CodeShield:
    """Judges code. Threads may share one.

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
            path = None if semgrep is False else find_semgrep()
        else:
            path = os.fspath(semgrep)
        self._semgrep = None if path is None else Semgrep(path)

    @property
    def semgrep(self) -> str | None:
        """The path of the program, if it is used."""
        return None if self._semgrep is None else self._semgrep.program

    @classmethod
    async def scan_code(cls, code: str, language: Language | str | None = None) -> CodeShieldScanResult:
        """As `codeshield.cs.CodeShield.scan_code`."""
        return await asyncio.to_thread(cls().scan, code, language)

    def scan(self, code: str, language: Language | str | None = None) -> CodeShieldScanResult:
        """Whether `code` is insecure; a text of a model may have it in fenced blocks. Without `language` each
        part is judged as what its fence says, or by the rules of all languages in SCANNED.
        """
        scan = _Scan(self.rules, code, None if language is None else _language(language))
        scan.run(scan.by_own_rules)
        scan.run(lambda: scan.by_semgrep(self._semgrep))
        return scan.result()

    def scan_quickly(self, code: str) -> CodeShieldScanResult:
        """Without semgrep."""
        scan = _Scan(self.rules, code, None)
        scan.run(scan.by_own_rules)
        return scan.result()

    def scan_by_semgrep(self, code: str, whole: bool = True) -> tuple[CodeShieldScanResult, bool]:
        """By semgrep's rules only; and whether some were left for later, since they may find something in a
        part that has no end yet, and the text is not `whole`.
        """
        scan = _Scan(self.rules, code, None)
        scan.run(lambda: scan.by_semgrep(self._semgrep, whole))
        return scan.result(), scan.has_waiting

    def close(self) -> None:
        """Ends what runs; later scans by semgrep's rules are errors."""
        if self._semgrep is not None:
            self._semgrep.close()


def _language(given: Language | str) -> Language:
    try:
        return Language(given)
    except ValueError:
        raise OptionError(
            f"language={given!r:.40}: known are {', '.join(one.value for one in Language)}"
        ) from None


class _Scan:
    """One scan's findings."""

    def __init__(self, rules: RuleSet, code: str, language: Language | None) -> None:
        if not isinstance(code, str):
            raise OptionError(f"code: give a text, not {type(code).__name__}")
        self._rules: RuleSet = rules
        self.issues: dict[tuple[str | None, int | None], Issue] = {}
        self.errors: list[str] = []
        self.not_covered: dict[str, None] = {}
        self.has_waiting = False
        self._parts: list[CodePart] = []
        if len(code) > MAX_CHARS:
            self.errors.append(f"a text of more than {MAX_CHARS} characters is not judged: send it in parts")
        else:
            self._parts = code_parts(code, language)

    def run(self, scan: Callable[[], None]) -> None:
        try:
            scan()
        except PyllamacpuError as error:
            self.errors.append(str(error))

    def by_own_rules(self) -> None:
        """Within SECONDS. Raises RuleTimeout, CodeTooLarge."""
        end = time.monotonic() + SECONDS
        for part in self._parts:
            for check in self._checks(part):
                _check_time(end)
                self._add(part, check)

    def _add(self, part: CodePart, issues: Iterable[Issue]) -> None:
        for issue in issues:
            found = replace(issue, line=(issue.line or 1) + part.first_line - 1)
            self.issues.setdefault((found.pattern_id, found.line), found)

    def _checks(self, part: CodePart) -> Iterator[Iterable[Issue]]:
        languages = _languages(part)
        for rule in self._regex_rules(part, languages):
            yield scan_regex(rule, part.text)
        if Language.PYTHON in languages:
            rules = semgrep_rules(Language.PYTHON, self._rules)
            yield scan_python(rules, part.text, calls_too=part.language is not None)

    def _regex_rules(self, part: CodePart, languages: Sequence[Language]) -> list[RegexRule]:
        """Prose around code has secrets, but no calls."""
        if part.is_prose:
            languages = (Language.LANGUAGE_AGNOSTIC,)
        found = [rule for own in languages for rule in regex_rules(own, self._rules)]
        return [*dict.fromkeys(found)]  # several languages have C's and those of any language

    def by_semgrep(self, semgrep: Semgrep | None, whole: bool = True) -> None:
        """Only the rules whose quick search finds something: a run takes seconds. Raises SemgrepError,
        RuleTimeout.
        """
        wanted: list[tuple[CodePart, Wanted]] = []
        end = time.monotonic() + SECONDS
        for part in self._parts:
            _check_time(end)
            found = [(part, one) for one in self._wanted(part)]
            if found and part.is_open and not whole and semgrep is not None:
                self.has_waiting = True
            else:
                wanted += found
        if semgrep is None:
            for _, (language, _text, rules) in wanted:
                names = ", ".join(rule.id for rule in rules)
                self.not_covered[f"{language.value}: {names} (semgrep is not installed)"] = None
        elif wanted:
            for (part, _), issues in zip(wanted, semgrep.scan([one for _, one in wanted]), strict=True):
                self._add(part, issues)

    def _wanted(self, part: CodePart) -> Iterator[Wanted]:
        languages = () if part.is_prose else _languages(part)
        for language in languages:
            if language is Language.PYTHON or (language is Language.CPP and Language.C in languages):
                continue
            rules = tuple(
                rule
                for rule in semgrep_rules(language, self._rules)
                if not rule.quick or search(regex.compile(rule.quick), part.text)
            )
            if rules:
                yield Wanted(language, part.text, rules)

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


def _check_time(end: float) -> None:
    if time.monotonic() > end:
        raise RuleTimeout(f"judging took more than {SECONDS:g} s")


def _languages(part: CodePart) -> tuple[Language, ...]:
    return SCANNED if part.language is None else (part.language,)


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
