"""Regular expressions with a limit of time each.

Python's `re` cannot be stopped, and some rules backtrack: five `.*` in a row take a minute on a hostile line.
The package `regex` (which the tokenizers need anyhow) has a limit and lets other threads run meanwhile. It
counts the processor time of the whole process, so time that other threads took is given back.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import regex

from pyllamacpu.errors import PyllamacpuError
from pyllamacpu.safety.code_shield.issues import Analyzer, Issue, Language
from pyllamacpu.safety.code_shield.rules import RegexRule

RULE_SECONDS = 0.25  # of one thread's processor time


class RuleTimeout(PyllamacpuError):
    """A regular expression that took too long for a text."""


def search(pattern: regex.Pattern[str], text: str, begin: int = 0) -> regex.Match[str] | None:
    """`pattern.search` within RULE_SECONDS (at most five times that is spent). Raises RuleTimeout."""
    limit = RULE_SECONDS
    with contextlib.suppress(TimeoutError):
        return pattern.search(text, begin, timeout=limit, concurrent=True)
    while True:  # others may have had the time
        start = time.thread_time()
        try:
            return pattern.search(text, begin, timeout=limit, concurrent=True)
        except TimeoutError:
            if time.thread_time() - start >= RULE_SECONDS / 2:
                raise RuleTimeout(
                    f"a pattern took more than {RULE_SECONDS:g} s: {pattern.pattern:.60}"
                ) from None
            limit *= 2


def scan_regex(rule: RegexRule, text: str) -> Iterator[Issue]:
    """The first finding of a rule that is not in a comment. Raises RuleTimeout."""
    begin = 0
    while found := search(rule.pattern, text, begin):
        line_start = text.rfind("\n", 0, found.start()) + 1
        secret = rule.language is Language.LANGUAGE_AGNOSTIC  # which is one in a comment too
        if secret or not _is_comment(text[line_start : found.start()]):
            yield Issue(
                rule.message,
                rule.cwe,
                rule.severity,
                rule=rule.pattern.pattern,
                line=text.count("\n", 0, found.start()) + 1,
                char=found.start() - line_start + 1,
                analyzer=Analyzer.REGEX,
                pattern_id=rule.id,
                language=rule.language,
            )
            return
        begin = max(found.end(), found.start() + 1)


def _is_comment(before: str) -> bool:
    """Whether a line that begins so is a comment or a directive where it goes on."""
    words = before.strip()
    return words.startswith(("#", "//")) or (words.startswith("/*") and "*/" not in words)
