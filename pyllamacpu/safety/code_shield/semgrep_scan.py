"""Rules that need the program semgrep, where it is installed: one run for all languages of a text."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyllamacpu.errors import PyllamacpuError
from pyllamacpu.safety.code_shield.issues import Analyzer, Issue, Language
from pyllamacpu.safety.code_shield.rules import SemgrepRule

SECONDS = 60.0  # that a run may take
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


class SemgrepError(PyllamacpuError):
    """semgrep failed, or did not end in time."""


def find_semgrep() -> str | None:
    """The program's path, if it is installed."""
    return shutil.which("semgrep")


def scan_semgrep(
    program: str, texts: Mapping[Language, str], rules: Mapping[Language, Sequence[SemgrepRule]]
) -> list[Issue]:
    """What the rules of each language find in its text. Raises SemgrepError."""
    own = {rule.id: rule for found in rules.values() for rule in found}
    try:
        with tempfile.TemporaryDirectory(prefix="code-shield-") as folder:
            files = dict(_write(Path(folder), texts))
            config = Path(folder, "rules.json")
            config.write_text(json.dumps({"rules": [rule.source for rule in own.values()]}), "utf-8")
            answer = _run([program, "scan", *_OPTIONS, "--config", str(config), *files], folder)
    except OSError as error:
        raise SemgrepError(f"semgrep: {error}") from error
    return [_issue(result, files, own) for result in _results(answer)]


def _write(folder: Path, texts: Mapping[Language, str]) -> Iterator[tuple[str, Language]]:
    for language, text in texts.items():
        path = folder / f"{language.value}{_SUFFIXES[language]}"
        path.write_text(_whole(text, language), "utf-8", errors="replace")
        yield str(path), language


def _whole(text: str, language: Language) -> str:
    """PHP begins with a mark, which examples leave out."""
    return f"<?php {text}" if language is Language.PHP and "<?" not in text else text


def _run(command: list[str], folder: str) -> dict[str, Any]:
    environment = {**os.environ, "SEMGREP_SEND_METRICS": "off", "SEMGREP_ENABLE_VERSION_CHECK": "0"}
    try:
        done = subprocess.run(
            command,
            check=False,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise SemgrepError(f"semgrep did not end within {SECONDS:g} s") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        words = done.stderr.decode("utf-8", "replace").strip()[-200:]
        raise SemgrepError(f"semgrep ended with {done.returncode} and without results: {words}") from None
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


def _issue(
    result: Mapping[str, Any], files: Mapping[str, Language], rules: Mapping[str, SemgrepRule]
) -> Issue:
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
        language=files[str(result["path"])],
    )
