"""The scanners of a shield: the firewall's, by the names of the option `--shield`, and what they found.

Users' messages and results of tools are scanned before they are answered, answers as they are written
(`shield.py`). Images are not looked at. Where semgrep is installed, its rules of Code Shield are applied too,
off the event loop and the engine's thread: to answers when a piece of code has its end, since a run takes
seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

from pyllamacpu.errors import OptionError
from pyllamacpu.safety.code_shield.scan import CodeShield, coverage
from pyllamacpu.safety.firewall import Firewall, strictest
from pyllamacpu.safety.firewall_types import (
    Message,
    Role,
    ScanDecision,
    ScannerType,
    ScanResult,
    text_of_calls,
)
from pyllamacpu.safety.scanners.base import failed
from pyllamacpu.safety.scanners.code import result_of_code
from pyllamacpu.text.call_forms import ToolCall

log = logging.getLogger("pyllamacpu.safety")

_THREADS = 2  # that wait for semgrep
_ALL = (Role.USER, Role.TOOL, Role.ASSISTANT)
SCANNERS: dict[str, tuple[ScannerType, tuple[Role, ...]]] = {
    "prompt-guard": (ScannerType.PROMPT_GUARD, (Role.USER, Role.TOOL)),
    "code-shield": (ScannerType.CODE_SHIELD, (Role.TOOL, Role.ASSISTANT)),
    "hidden-ascii": (ScannerType.HIDDEN_ASCII, _ALL),
    "regex": (ScannerType.REGEX, _ALL),
    "pii": (ScannerType.PII_DETECTION, _ALL),
}
"""By the names of the option: the scanner, and whose words it looks at."""

_KEPT = 4096  # results of messages, which come again with each turn of a conversation

What = Literal["input", "output"]
Said = Mapping[str, str]  # a role and a content


class Finding(NamedTuple):
    """Why something is blocked. `status` "error": it could not be judged."""

    scanner: str
    what: What
    reason: str
    score: float
    status: str = "success"


class ShieldScanners:
    """Scanners by their names in SCANNERS. `load` comes first, in any thread. Raises OptionError.

    prompt_guard: the file of its model.
    """

    def __init__(self, names: Sequence[str], prompt_guard: str | None = None) -> None:
        by_role: dict[Role, list[ScannerType]] = {role: [] for role in _ALL}
        for name in names:
            if name not in SCANNERS:
                raise OptionError(f"shield {name!r:.40} is not known: there are {', '.join(SCANNERS)}")
            scanner, roles = SCANNERS[name]
            for role in roles:
                by_role[role].append(scanner)
        self._prompt_guard = prompt_guard if "prompt-guard" in names else None
        self._code_shield = CodeShield() if "code-shield" in names else None
        answers = {Role.ASSISTANT: by_role.pop(Role.ASSISTANT)}
        self._firewall = Firewall({**by_role}, prompt_guard=prompt_guard, code_shield=self._code_shield)
        self._answers = Firewall(answers, code_shield=CodeShield(semgrep=False))
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="semgrep")
        self._known: OrderedDict[bytes, tuple[Finding, ...]] = OrderedDict()

    def load(self) -> None:
        """Raises any PyllamacpuError."""
        self._firewall.load()
        self._answers.load()

    @property
    def not_scanned(self) -> list[str]:
        """What passes without being looked at, in words."""
        if self._code_shield is None or self._code_shield.semgrep is not None:
            return []
        left = [f"{name} ({n})" for name, _, n in coverage("codeshield", has_semgrep=False) if n]
        return [f"code by Code Shield's rules that need semgrep, which is not installed: {', '.join(left)}"]

    @property
    def weight_bytes(self) -> int:
        """Of the Prompt Guard model, whose weights stay in memory."""
        return os.path.getsize(self._prompt_guard) if self._prompt_guard is not None else 0

    async def read(self, messages: Sequence[Said]) -> tuple[Finding, ...]:
        """What is found in the messages of users and tools, wherever in a conversation they are."""
        scanned = [Message(_role(one["role"]), one["content"]) for one in messages]
        found = await asyncio.gather(*map(self._read, (one for one in scanned if one.role in _ALL[:2])))
        return tuple(dict.fromkeys(finding for findings in found for finding in findings))

    async def _read(self, message: Message) -> tuple[Finding, ...]:
        text = f"{message.role.value}\0{message.content}"
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        if key not in self._known:
            findings = await self._scan(self._firewall, message, "input")
            if any(finding.status == "error" for finding in findings):
                return findings
            self._known[key] = findings
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    async def judge_answer(
        self, said: str, calls: Sequence[ToolCall] = (), whole: bool = True
    ) -> tuple[tuple[Finding, ...], bool]:
        """What is found in an answer so far, and in the arguments of its calls, as their tools will read
        them; and whether it must go on before it is judged (code without an end), when it is not `whole`.
        """
        rows = [{"arguments": call.arguments} for call in calls]
        message = Message(Role.ASSISTANT, said, rows)
        found = await self._scan(self._answers, message, "output")
        if found or self._code_shield is None or self._code_shield.semgrep is None:
            return found, False
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._by_semgrep, self._code_shield, message, whole)

    def _by_semgrep(
        self, shield: CodeShield, message: Message, whole: bool
    ) -> tuple[tuple[Finding, ...], bool]:
        try:
            texts = [text for text in (message.content, text_of_calls(message)) if text.strip()]
            found = [shield.scan_by_semgrep(text, whole) for text in texts]
            result = result_of_code([one for one, _ in found])
        except Exception as error:
            log.warning("semgrep failed: %s", error)
            found, result = [], failed(f"semgrep failed: {error}")
        return tuple(_findings({"code_shield": result}, "output")), any(waits for _, waits in found)

    async def _scan(self, firewall: Firewall, message: Message, what: What) -> tuple[Finding, ...]:
        results = await firewall.findings(message)
        if strictest(results).decision is ScanDecision.ALLOW:
            return ()
        return tuple(_findings(results, what))

    def close(self) -> None:
        if self._code_shield is not None:
            self._code_shield.close()
        self._threads.shutdown(wait=True)
        self._firewall.close()
        self._answers.close()


def _findings(results: Mapping[str, ScanResult], what: What) -> Iterable[Finding]:
    for name, result in results.items():
        if result.decision is not ScanDecision.ALLOW:
            yield Finding(name, what, result.reason, result.score, result.status.value)


def _role(name: str) -> Role:
    """The operator's words are not a user's; a role that is not known is a user."""
    if name in ("system", "developer"):
        return Role.SYSTEM
    if name in ("tool", "function", "ipython"):
        return Role.TOOL
    return Role.ASSISTANT if name == "assistant" else Role.USER
