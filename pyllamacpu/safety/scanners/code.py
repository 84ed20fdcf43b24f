"""Code Shield as a scanner."""

from __future__ import annotations

from collections.abc import Sequence

from pyllamacpu.safety.code_shield.issues import CodeShieldScanResult, Issue
from pyllamacpu.safety.code_shield.scan import CodeShield
from pyllamacpu.safety.firewall_types import Message, ScanResult, Trace, text_of_calls
from pyllamacpu.safety.scanners.base import ThreadScanner, allow, block, failed


class CodeShieldScanner(ThreadScanner):
    """Blocks messages with insecure code, also what Code Shield would only warn of, as LlamaFirewall does."""

    def __init__(self, shield: CodeShield | None = None) -> None:
        super().__init__("Code Shield Scanner", 1.0)
        self._made_here = shield is None
        self._shield = CodeShield() if shield is None else shield

    def check(self, message: Message, past_trace: Trace | None = None) -> ScanResult:
        # apart: fences in the one say nothing of the other
        texts = filter(str.strip, (message.content, text_of_calls(message)))
        return result_of_code([self._shield.scan(text) for text in texts])

    def close(self) -> None:
        if self._made_here:
            self._shield.close()
        super().close()


def result_of_code(results: Sequence[CodeShieldScanResult]) -> ScanResult:
    """One result for the texts of a message."""
    errors = [words for result in results for words in result.errors]
    if errors:
        return failed(f"Code Shield: {'; '.join(errors)}")
    lines = dict.fromkeys(_line(issue) for result in results for issue in result.issues_found or ())
    if not lines:
        left = dict.fromkeys(words for result in results for words in result.not_covered)
        return allow("; not covered: ".join(["No insecure code detected", *left]))
    return block("\n".join(["Insecure code:", *lines]))


def _line(issue: Issue) -> str:
    cwe = f" ({issue.cwe_id})" if issue.cwe_id else ""
    return f"- {issue.description}{cwe} at line {issue.line} [{issue.severity.value}: {issue.pattern_id}]"
