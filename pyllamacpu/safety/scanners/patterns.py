"""Scanners that look for characters and patterns: hidden ASCII, regular expressions, personal data."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any

import regex

from pyllamacpu.errors import OptionError
from pyllamacpu.safety.code_shield.regex_scan import RuleTimeout, search
from pyllamacpu.safety.firewall_types import Message, ScanResult, Trace, text_of
from pyllamacpu.safety.scanners.base import ThreadScanner, allow, block
from pyllamacpu.safety.scanners.disguises import plain_letters, readings
from pyllamacpu.safety.scanners.injections import INJECTIONS

_TAGS = regex.compile("[\U000e0000-\U000e007f]")
_FLAGS = regex.compile(  # of England, Scotland and Wales, which are written with tags
    "\U0001f3f4\U000e0067\U000e0062(?:\U000e0065\U000e006e\U000e0067|\U000e0073\U000e0063\U000e0074"
    "|\U000e0077\U000e006c\U000e0073)\U000e007f"
)
_SELECTORS = regex.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]{4,}")  # in a row they mean nothing but bytes
_SECONDS = 5.0  # that a text's readings may take
_WORD = regex.compile(r"([a-z]{3,})(\??)")
_NO_WORD = regex.compile(r"\\.|\[[^\]]*\]|\(\?<?[=!]")  # in a pattern
_MAX_SHOWN = 200  # characters of what was hidden

DEFAULT_PATTERNS: dict[str, str] = {
    **INJECTIONS,
    "Email address": r"\b[A-Z0-9._%+-]{1,64}@(?:[A-Z0-9-]{1,63}\.){1,8}[A-Z]{2,24}\b",
    "Phone number": r"(?<![\w.-])(?:\+\d{1,3}[\s.-]?|1[\s.-])?"
    r"(?:\(\d{3}\)\s?|\d{3}[\s.-])\d{3}[\s.-]\d{4}(?![\w-])"
    # ten digits alone are a time or a number of anything, unless a word says so
    r"|\b(?:phone|telephone|tel|cell|mobile|call|fax|whatsapp)\b[^\d\n]{0,20}?\+?\d{10,13}(?!\d)",
    "Credit card": r"(?<![\d-])(?:\d{4}[- ]?){3}\d{4}(?![\d-])",
    "Social security number": r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])",
}


class HiddenASCIIScanner(ThreadScanner):
    """Text that people do not see and models read: tag characters (U+E0000 to U+E007F) outside of flags, and
    bytes in rows of variation selectors.
    """

    def __init__(self, scanner_name: str = "Hidden ASCII Scanner", block_threshold: float = 1.0) -> None:
        super().__init__(scanner_name, block_threshold)

    def check(self, message: Message, past_trace: Trace | None = None) -> ScanResult:
        text = _FLAGS.sub("", text_of(message))
        hidden = "".join(chr(ord(c) - 0xE0000) for c in _TAGS.findall(text))
        hidden += "".join(_selected_bytes(row) for row in _SELECTORS.findall(text))
        if not hidden:
            return allow("No hidden ASCII detected")
        return block(f"Hidden ASCII: {hidden[:_MAX_SHOWN]!r}")


def _selected_bytes(row: str) -> str:
    codes = (ord(c) - 0xFE00 if ord(c) < 0xFE10 else ord(c) - 0xE0100 + 16 for c in row)
    return bytes(codes).decode("utf-8", "replace")


class RegexScanner(ThreadScanner):
    """Regular expressions by name, which ignore case, within a limit of time. They are looked for in the
    text, and in its other readings: without hidden and foreign letters, with digits as letters, decoded
    (`disguises.py`).
    """

    def __init__(
        self,
        scanner_name: str = "Regex Scanner",
        block_threshold: float = 1.0,
        patterns: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(scanner_name, block_threshold)
        try:
            self.patterns = {
                name: regex.compile(pattern, regex.IGNORECASE | regex.DOTALL)
                for name, pattern in (DEFAULT_PATTERNS if patterns is None else patterns).items()
            }
        except regex.error as error:
            raise OptionError(f"patterns: {error}") from None
        self._words = frozenset().union(*(_words(one.pattern) for one in self.patterns.values()))

    def check(self, message: Message, past_trace: Trace | None = None) -> ScanResult:
        text, end = text_of(message), time.monotonic() + _SECONDS
        for how, reading in chain([("", text)], readings(text, self._words)):
            for name, pattern in self.patterns.items():
                if search(pattern, reading):
                    return block(f"Regex match: {name}{how and f' (by {how})'}")
            if time.monotonic() > end:
                raise RuleTimeout(f"the readings of a text took more than {_SECONDS:g} s")
        return allow("No regex patterns matched")


def _words(pattern: str) -> Iterator[str]:
    """The words that stand in a pattern, with and without a letter that may be missing."""
    for word, optional in _WORD.findall(_NO_WORD.sub(" ", pattern.lower())):
        yield word
        if optional:
            yield word[:-1]


_IBAN = regex.compile(r"(?<![A-Z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Z0-9])")
_CARD = regex.compile(r"(?<![\d-])\d(?:[ -]?\d){12,18}(?![\d-])")
_PLAIN = {
    "Email address": regex.compile(DEFAULT_PATTERNS["Email address"], regex.IGNORECASE),
    "Phone number": regex.compile(DEFAULT_PATTERNS["Phone number"]),
    "Social security number": regex.compile(
        r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])"
    ),
}


class PIIScanner(ThreadScanner):
    """Personal data: by plain patterns, with check digits where there are some; or by the package
    presidio-analyzer, which finds names and places too: `engine` is "presidio" for its own models (it may
    fetch them), or an `AnalyzerEngine`.
    """

    def __init__(
        self,
        scanner_name: str = "PII Scanner",
        block_threshold: float = 0.5,
        engine: Any = "patterns",
    ) -> None:
        super().__init__(scanner_name, block_threshold)
        is_analyzer = callable(getattr(engine, "analyze", None))
        if engine not in ("patterns", "presidio") and not is_analyzer:
            raise OptionError(f"engine={engine!r:.40}: give patterns, presidio, or an AnalyzerEngine")
        self._engine, self._lock = engine, threading.Lock()
        self._presidio: Any = engine if is_analyzer else None

    def load(self) -> None:
        with self._lock:
            if self._engine == "presidio" and self._presidio is None:
                try:
                    analyzer = importlib.import_module("presidio_analyzer")
                except ImportError:
                    raise OptionError('engine="presidio" needs: pip install presidio-analyzer') from None
                try:
                    self._presidio = analyzer.AnalyzerEngine()
                except SystemExit as error:  # of a download that fails
                    raise OptionError(f"presidio-analyzer cannot load its models: {error}") from None

    def check(self, message: Message, past_trace: Trace | None = None) -> ScanResult:
        text = text_of(message)
        if self._engine == "patterns":
            texts = {text, plain_letters(text)}
            found = {kind: 1.0 for kind, is_in in _KINDS.items() if any(map(is_in, texts))}
        else:
            self.load()
            entities = self._presidio.analyze(text=text, language="en", score_threshold=self.block_threshold)
            found = {entity.entity_type: float(entity.score) for entity in entities}
        if not found:
            return allow("No PII detected")
        return block(f"PII detected: {', '.join(sorted(found))}", max(found.values()))  # kinds, not the data


def _is_in(pattern: Any, text: str) -> bool:
    return search(pattern, text) is not None


def _card_is_in(text: str) -> bool:
    return any(_luhn([int(c) for c in found if c.isdigit()]) for found in _CARD.findall(text))


def _luhn(digits: list[int]) -> bool:
    """The check digit of cards (ISO/IEC 7812)."""
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _iban_is_in(text: str) -> bool:
    """Those whose check digits fit (ISO 13616)."""
    ibans = (found.replace(" ", "") for found in _IBAN.findall(text))
    return any(int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97 == 1 for iban in ibans)


_KINDS: dict[str, Callable[[str], bool]] = {
    **{name: partial(_is_in, pattern) for name, pattern in _PLAIN.items()},
    "Credit card": _card_is_in,
    "Bank account (IBAN)": _iban_is_in,
}
