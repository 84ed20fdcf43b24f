"""Code Shield as a scanner."""

from __future__ import annotations

from pyllamacpu.safety.code_shield.issues import Issue
from pyllamacpu.safety.code_shield.scan import CodeShield
from pyllamacpu.safety.firewall_types import Message, ScanResult, Trace, text_of_calls
from pyllamacpu.safety.scanners.base import ThreadScanner, allow, block, failed


class CodeShieldScanner(ThreadScanner):
    """Blocks messages with insecure code, also what Code Shield would only warn of, as LlamaFirewall does."""

    def __init__(self, shield: CodeShield | None = None) -> None:
        super().__init__("Code Shield Scanner", 1.0)
        self._shield = CodeShield() if shield is None else shield

    def check(self, message: Message, past_trace: Trace | None = None) -> ScanResult:
        # apart: fences in the one say nothing of the other
        texts = filter(str.strip, (message.content, text_of_calls(message)))
        results = [self._shield.scan(text) for text in texts]
        errors = [words for result in results for words in result.errors]
        if errors:
            return failed(f"Code Shield: {'; '.join(errors)}")
        lines = dict.fromkeys(_line(issue) for result in results for issue in result.issues_found or ())
        if not lines:
            return allow("No insecure code detected")
        return block("\n".join(["Insecure code:", *lines]))


def _line(issue: Issue) -> str:
    cwe = f" ({issue.cwe_id})" if issue.cwe_id else ""
    return f"- {issue.description}{cwe} at line {issue.line} [{issue.severity.value}: {issue.pattern_id}]"
