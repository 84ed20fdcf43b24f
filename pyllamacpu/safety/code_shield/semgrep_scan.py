"""Rules that need the program semgrep, where it is installed.

A run takes two or three seconds of one core, so it is made for several texts at once, its results are kept,
few run at a time, with a lower priority, and each within a limit of time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pyllamacpu.errors import PyllamacpuError
from pyllamacpu.safety.code_shield.issues import Analyzer, Issue, Language
from pyllamacpu.safety.code_shield.rules import SemgrepRule

SECONDS = 60.0  # that a run may take, with its waiting
_AT_ONCE = 2  # runs in a process
_KEPT = 256  # results
_NICENESS = 10
_SUFFIXES = {
    Language.C: ".c",
    Language.CPP: ".cpp",
    Language.CSHARP: ".cs",
    Language.JAVA: ".java",
    Language.JAVASCRIPT: ".js",
    Language.PHP: ".php",
}
_OPTIONS = ("--json", "--quiet", "--metrics=off", "--disable-version-check", "--no-git-ignore", "--jobs=1")
_EXPECTED_ERRORS = (
    "Syntax error",
    "Lexical error",
    "Other syntax error",
    "Partial",
)  # of code that is not whole

_places = threading.BoundedSemaphore(_AT_ONCE)


class SemgrepError(PyllamacpuError):
    """semgrep failed, or did not end in time."""


def find_semgrep() -> str | None:
    """The program's path, if it is installed."""
    return shutil.which("semgrep")


class Wanted(NamedTuple):
    """A text, and the rules that may find something in it."""

    language: Language
    text: str
    rules: tuple[SemgrepRule, ...]

    @property
    def key(self) -> bytes:
        names = "\0".join([self.language.value, *(rule.id for rule in self.rules)])
        return hashlib.sha256(f"{names}\0\0{self.text}".encode("utf-8", "surrogatepass")).digest()


class Semgrep:
    """The program. Threads may share it.

    program: its path.
    """

    def __init__(self, program: str) -> None:
        self.program = program
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, tuple[Issue, ...]] = OrderedDict()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def scan(self, wanted: Sequence[Wanted]) -> list[tuple[Issue, ...]]:
        """What is found in each text, with the lines of that. One run for all that are not known. Raises
        SemgrepError.
        """
        new = {one.key: one for one in wanted}
        with self._lock:
            found = {key: self._known[key] for key in new if key in self._known}
        new = {key: one for key, one in new.items() if key not in found}
        if new:
            found |= dict(zip(new, self._scan([*new.values()]), strict=True))
        with self._lock:
            self._known |= found
            for key in found:
                self._known.move_to_end(key)
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return [found[one.key] for one in wanted]

    def _scan(self, wanted: Sequence[Wanted]) -> list[tuple[Issue, ...]]:
        rules = {rule.id: rule for one in wanted for rule in one.rules}
        try:
            with tempfile.TemporaryDirectory(prefix="code-shield-") as folder:
                files = {str(_write(Path(folder), i, one)): i for i, one in enumerate(wanted)}
                config = Path(folder, "rules.json")
                config.write_text(json.dumps({"rules": [rule.source for rule in rules.values()]}), "utf-8")
                command = [self.program, "scan", *_OPTIONS, "--config", str(config), *files]
                answer = _answer(*self._run(command, folder))
            found: list[list[Issue]] = [[] for _ in wanted]
            for result in _results(answer):
                i = files[str(result["path"])]
                found[i].append(_issue(result, wanted[i].language, rules))
        except OSError as error:
            raise SemgrepError(f"semgrep: {error}") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise SemgrepError(f"semgrep's results cannot be read: {error!r:.100}") from error
        return [tuple(issues) for issues in found]

    def _run(self, command: list[str], folder: str) -> tuple[int, bytes, bytes]:
        """(exit code, output, error output). Raises SemgrepError, OSError."""
        end = time.monotonic() + SECONDS
        if not _places.acquire(timeout=SECONDS):
            raise SemgrepError(f"semgrep had no turn within {SECONDS:g} s")
        try:
            process = self._started(command, folder)
            try:
                output, errors = process.communicate(timeout=max(0.0, end - time.monotonic()))
            except BaseException as error:
                _kill(process)
                process.communicate()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise SemgrepError(f"semgrep did not end within {SECONDS:g} s") from None
                raise
            finally:
                with self._lock:
                    self._running.discard(process)
        finally:
            _places.release()
        if self._closed:
            raise SemgrepError("semgrep was stopped")
        return process.returncode, output, errors

    def _started(self, command: list[str], folder: str) -> subprocess.Popen[bytes]:
        own = {"SETTINGS_FILE": "settings.yml", "LOG_FILE": "log", "VERSION_CACHE_PATH": "version"}
        environment = {
            **os.environ,
            "SEMGREP_SEND_METRICS": "off",
            "SEMGREP_ENABLE_VERSION_CHECK": "0",
            **{f"SEMGREP_{name}": str(Path(folder, file)) for name, file in own.items()},
        }
        with self._lock:
            if self._closed:
                raise SemgrepError("semgrep was stopped")
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # it has children, which end with it
            )
            self._running.add(process)
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
        return process

    def close(self) -> None:
        """Ends what runs; later scans are errors."""
        with self._lock:
            self._closed = True
            for process in self._running:
                if process.returncode is None:  # else its number may be another's
                    _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With its children, which may hold its output open. It must not have been waited for yet."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)


def _write(folder: Path, i: int, wanted: Wanted) -> Path:
    path = folder / f"{i}{_SUFFIXES[wanted.language]}"
    path.write_text(_whole(wanted.text, wanted.language), "utf-8", errors="replace")
    return path


def _whole(text: str, language: Language) -> str:
    """PHP begins with a mark, which examples leave out."""
    return f"<?php {text}" if language is Language.PHP and "<?" not in text else text


def _answer(code: int, output: bytes, errors: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(output)
    except ValueError:
        words = errors.decode("utf-8", "replace").strip()[-200:]
        raise SemgrepError(f"semgrep ended with {code} and without results: {words}") from None
    if not isinstance(answer, dict):
        raise SemgrepError("semgrep answered what is not an object")
    return answer


def _results(answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    for error in answer.get("errors", ()):
        kind = error.get("type")
        kind = kind[0] if isinstance(kind, list) else kind
        if not str(kind).startswith(_EXPECTED_ERRORS):
            raise SemgrepError(f"semgrep: {error.get('message') or kind}"[:300])
    return list(answer.get("results", ()))


def _issue(result: Mapping[str, Any], language: Language, rules: Mapping[str, SemgrepRule]) -> Issue:
    name = str(result["check_id"]).rsplit(".", 1)[-1]  # semgrep puts the file's folders before it
    rule, start = rules[name], result["start"]
    return Issue(
        rule.message,
        rule.cwe,
        rule.severity,
        line=start["line"],
        char=start["col"],
        name=rule.id,
        analyzer=Analyzer.SEMGREP,
        pattern_id=rule.id,
        language=language,
    )
