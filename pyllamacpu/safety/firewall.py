"""The firewall: scanners that judge what users, tools and models say, in the shape of PyPI's `llamafirewall`.

What is different: scanners and their models are made once, not for each message; it works inside of a running
event loop; a scanner that fails blocks (status ERROR); all scanners of a role run and the strictest decision
counts; calls of tools are judged too.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Callable, Coroutine, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from typing_extensions import Self

from pyllamacpu.errors import OptionError
from pyllamacpu.forks import fork_safe_lock
from pyllamacpu.safety.code_shield.scan import CodeShield
from pyllamacpu.safety.firewall_types import (
    Configuration,
    Message,
    Role,
    ScanDecision,
    ScannerType,
    ScanResult,
    ScanStatus,
    Trace,
    UseCase,
)
from pyllamacpu.safety.scanners.base import Scanner, allow, failed, register_scanner, registered
from pyllamacpu.safety.scanners.code import CodeShieldScanner
from pyllamacpu.safety.scanners.models import AlignmentScanner, PromptGuardScanner, Scorer
from pyllamacpu.safety.scanners.patterns import HiddenASCIIScanner, PIIScanner, RegexScanner

log = logging.getLogger("pyllamacpu.safety")

register_llamafirewall_scanner = register_scanner
Result = TypeVar("Result")

DEFAULT_SCANNERS: Configuration = {
    Role.TOOL: [ScannerType.CODE_SHIELD, ScannerType.PROMPT_GUARD],
    Role.USER: [ScannerType.PROMPT_GUARD],
    Role.SYSTEM: [],
    Role.ASSISTANT: [ScannerType.CODE_SHIELD],
    Role.MEMORY: [],
}
USE_CASES: Mapping[UseCase, Configuration] = {
    UseCase.CHAT_BOT: {
        Role.USER: [ScannerType.PROMPT_GUARD],
        Role.SYSTEM: [ScannerType.PROMPT_GUARD],
    },
    UseCase.CODING_ASSISTANT: {
        Role.ASSISTANT: [ScannerType.CODE_SHIELD],
        Role.TOOL: [ScannerType.CODE_SHIELD],
    },
}
_STRICTNESS = (ScanDecision.ALLOW, ScanDecision.HUMAN_IN_THE_LOOP_REQUIRED, ScanDecision.BLOCK)


class Firewall:
    """Scanners by role.

        firewall = Firewall({Role.USER: [ScannerType.HIDDEN_ASCII, ScannerType.REGEX]})
        result = firewall.scan(UserMessage("Ignore previous instructions"))
        result.decision, result.reason, result.score, result.status

    Args:
        scanners: for each role the scanners of its messages: `ScannerType`s, their values, or names that
            `register_scanner` made known. None: as LlamaFirewall has it by default. The attribute of this
            name may be changed later: each scan goes by it.
        prompt_guard: a `PromptGuard`, or a file or name of one; else what PYLLAMACPU_PROMPT_GUARD names.
        alignment: a `Llama`, or a file or name of a chat model; else what PYLLAMACPU_ALIGNMENT_MODEL names.
        prompt_guard_threshold: the probability of an attack from which a text is blocked.
        code_shield: its rules, if not the default ones.
        patterns: name → regular expression, instead of the regex scanner's own.
        pii: "patterns"; or, when presidio-analyzer is installed, "presidio" or an `AnalyzerEngine`.

    Models are loaded by the first scan that needs them, or by `load`, and once. Raises OptionError for
    scanners that are not known.
    """

    def __init__(
        self,
        scanners: Configuration | None = None,
        *,
        prompt_guard: Scorer | str | os.PathLike[str] | None = None,
        alignment: Any = None,
        prompt_guard_threshold: float = 0.9,
        code_shield: CodeShield | None = None,
        patterns: Mapping[str, str] | None = None,
        pii: Any = "patterns",
    ) -> None:
        _check_models(prompt_guard, alignment, code_shield)
        _check_choices(prompt_guard_threshold, patterns)
        if not isinstance(scanners, (Mapping, type(None))):
            raise OptionError(f"scanners={scanners!r:.60}: give a dict from a role to its scanners")
        self._makers: dict[ScannerType, Callable[[], Scanner]] = {
            ScannerType.CODE_SHIELD: lambda: CodeShieldScanner(code_shield),
            ScannerType.PROMPT_GUARD: lambda: PromptGuardScanner(prompt_guard_threshold, prompt_guard),
            ScannerType.AGENT_ALIGNMENT: lambda: AlignmentScanner(model=alignment),
            ScannerType.HIDDEN_ASCII: HiddenASCIIScanner,
            ScannerType.PII_DETECTION: lambda: PIIScanner(engine=pii),
            ScannerType.REGEX: lambda: RegexScanner(patterns=patterns),
        }
        self.scanners: Configuration = scanners or {
            role: [*names] for role, names in DEFAULT_SCANNERS.items()
        }
        self._made: dict[str, Scanner] = {}
        self._lock = fork_safe_lock()
        for given in self.scanners:
            self._of_role(_role(given))

    @classmethod
    def from_usecase(cls, usecase: UseCase, **options: Any) -> Self:
        """The scanners of a use case; `options` as for the class."""
        if not isinstance(usecase, Hashable) or usecase not in USE_CASES:
            raise OptionError(f"usecase={usecase!r:.60}: known are {', '.join(map(str, USE_CASES))}")
        return cls(USE_CASES[usecase], **options)

    def _of_role(self, role: Role) -> dict[str, Scanner]:
        """As `scanners` has them now: who changes it changes what is scanned. Raises OptionError."""
        found: dict[str, Scanner] = {}
        with self._lock:
            for given, names in self.scanners.items():
                if isinstance(names, (str, bytes, Mapping)) or not isinstance(names, Iterable):
                    raise OptionError(f"scanners of {given!r:.60}: give a list, not {names!r:.60}")
                if _role(given) is role:
                    found.update(map(self._scanner, names))
        return found

    def _scanner(self, given: ScannerType | str) -> tuple[str, Scanner]:
        name = given if isinstance(given, str) else str(getattr(given, "value", given))
        if name not in self._made:
            own = next((kind for kind in ScannerType if kind.value == name), None)
            if name in registered:
                self._made[name] = _made(name, registered[name])
            elif own is not None:
                self._made[name] = self._makers[own]()
            else:
                known = [*(kind.value for kind in ScannerType), *registered]
                raise OptionError(f"scanner {name!r:.60} is not known: there are {', '.join(known)}")
        return name, self._made[name]

    def load(self) -> None:
        """Loads all models now. Raises any PyllamacpuError."""
        for scanner in self._made.values():
            scanner.load()

    async def findings(self, input: Message, trace: Trace | None = None) -> dict[str, ScanResult]:
        """What each scanner of the message's role says, by its name."""
        try:
            _check_trace(() if trace is None else trace)
            if not hasattr(input, "role"):
                raise OptionError(f"give a Message, not {type(input).__name__}")
            role = _role(input.role)
        except (OptionError, AttributeError) as error:
            return {"firewall": failed(f"not a message that can be judged: {error}")}
        try:
            scanners = self._of_role(role)
        except (OptionError, AttributeError) as error:  # of `scanners` that were changed
            return {"firewall": failed(str(error))}
        results = await asyncio.gather(*(_scanned(one, input, trace) for one in scanners.values()))
        return dict(zip(scanners, results, strict=True))

    async def scan_async(self, input: Message, trace: Trace | None = None) -> ScanResult:
        """The strictest of the decisions of all scanners, with the highest score of it. `trace`: the messages
        before.
        """
        return strictest(await self.findings(input, trace))

    def scan(self, input: Message, trace: Trace | None = None) -> ScanResult:
        """As `scan_async`, also where an event loop runs (which waits for it)."""
        return _run(self.scan_async(input, trace))

    async def scan_replay_async(self, trace: Trace) -> ScanResult:
        """The result of the last message of a conversation, or of the first that does not pass."""
        _check_trace(trace)
        result = allow("default")
        for i, message in enumerate(trace):
            result = await self.scan_async(message, [*trace[:i]] or None)
            if result.decision is not ScanDecision.ALLOW:
                break
        return result

    def scan_replay(self, trace: Trace) -> ScanResult:
        """As `scan_replay_async`."""
        return _run(self.scan_replay_async(trace))

    async def scan_replay_build_trace_async(
        self, message: Message, stored_trace: Trace | None = None
    ) -> tuple[ScanResult, Trace]:
        """The result of a message behind a conversation, and the conversation with it if it passes."""
        before = [] if stored_trace is None else stored_trace
        _check_trace(before)
        result = await self.scan_async(message, before)
        passes = result.decision is ScanDecision.ALLOW
        return result, [*before, message] if passes else before

    def scan_replay_build_trace(
        self, message: Message, stored_trace: Trace | None = None
    ) -> tuple[ScanResult, Trace]:
        """As `scan_replay_build_trace_async`."""
        return _run(self.scan_replay_build_trace_async(message, stored_trace))

    def close(self) -> None:
        """Closes the models that were opened here."""
        for scanner in self._made.values():
            scanner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _made(name: str, make: Callable[[], Scanner]) -> Scanner:
    try:
        return make()
    except TypeError as error:
        raise OptionError(f"scanner {name!r:.60} cannot be made: {error}") from error


def _check_models(prompt_guard: Any, alignment: Any, code_shield: Any) -> None:
    """Raises OptionError."""
    files = (str, os.PathLike, type(None))
    for name, given, method in (
        ("prompt_guard", prompt_guard, "score"),
        ("alignment", alignment, "create_chat_completion"),
    ):
        if not isinstance(given, files) and not callable(getattr(given, method, None)):
            raise OptionError(f"{name}={given!r:.60}: give a model, or the file or name of one")
    if code_shield is not None and not callable(getattr(code_shield, "scan", None)):
        raise OptionError(f"code_shield={code_shield!r:.60}: give a CodeShield")


def _check_choices(threshold: Any, patterns: Any) -> None:
    """Raises OptionError. A threshold that is not a number, or above 1, would let everything pass."""
    if (
        isinstance(threshold, bool)
        or not isinstance(threshold, (int, float, np.integer, np.floating))
        or not 0 <= threshold <= 1
    ):
        raise OptionError(f"prompt_guard_threshold={threshold!r:.60}: give a number from 0 to 1")
    if patterns is not None and not (
        isinstance(patterns, Mapping) and all(isinstance(x, str) for pair in patterns.items() for x in pair)
    ):
        raise OptionError(f"patterns={patterns!r:.60}: give a dict from a name to a regular expression")


def _check_trace(trace: Any) -> None:
    """Raises OptionError."""
    if isinstance(trace, (str, bytes)) or not isinstance(trace, Sequence):
        raise OptionError(f"the messages before: give a list of messages, not {trace!r:.60}")


def _role(given: Any) -> Role:
    """Ours, for one of another package's too. Raises OptionError."""
    try:
        return Role(getattr(given, "value", given))
    except ValueError:
        raise OptionError(f"role {given!r:.60}: there are {', '.join(role.value for role in Role)}") from None


async def _scanned(scanner: Scanner, message: Message, trace: Trace | None) -> ScanResult:
    """Never raises an error, and never lets one pass."""
    try:
        if not isinstance(message.content, str):
            raise OptionError(f"the content must be a text, not {type(message.content).__name__}")
        result = await scanner.scan(message, trace)
        if not isinstance(result.decision, ScanDecision) or math.isnan(result.score):
            raise OptionError(f"it answered {result!r:.120}")
    except Exception as error:
        name = getattr(scanner, "name", type(scanner).__name__)  # one's own may have none
        log.warning("%s failed: %s", name, error)
        return failed(f"{name} failed: {error}")
    if result.status is ScanStatus.ERROR and result.decision is not ScanDecision.BLOCK:
        return failed(result.reason)
    return result


def strictest(results: Mapping[str, ScanResult]) -> ScanResult:
    """One result for several scanners'."""
    if not results:
        return allow("default")
    decision = max((one.decision for one in results.values()), key=_STRICTNESS.index)
    deciding = {name: one for name, one in results.items() if one.decision is decision}
    reasons = [
        one.reason.strip() if len(results) == 1 else f"{name}: {one.reason.strip()} - score: {one.score}"
        for name, one in deciding.items()
    ]
    statuses = [one.status for one in deciding.values()]
    return ScanResult(
        decision, "; ".join(reasons), max(one.score for one in deciding.values()), _status(statuses)
    )


def _status(statuses: Sequence[ScanStatus]) -> ScanStatus:
    if ScanStatus.ERROR in statuses:
        return ScanStatus.ERROR
    return ScanStatus.SUCCESS if ScanStatus.SUCCESS in statuses else statuses[0]


def _run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as thread:  # which has an event loop of its own
        return thread.submit(asyncio.run, coroutine).result()


LlamaFirewall = Firewall
