"""What Code Shield finds in code, in the shape of PyPI's `codeshield`."""

from __future__ import annotations

import enum
import json
from dataclasses import asdict, dataclass, field


class Language(str, enum.Enum):
    """Languages that there are rules for."""

    C = "c"
    CPP = "cpp"
    CSHARP = "csharp"
    HACK = "hack"
    JAVA = "java"
    JAVASCRIPT = "javascript"
    KOTLIN = "kotlin"
    OBJECTIVE_C = "objective_c"
    OBJECTIVE_CPP = "objective_cpp"
    PHP = "php"
    PYTHON = "python"
    RUBY = "ruby"
    RUST = "rust"
    SWIFT = "swift"
    XML = "xml"
    LANGUAGE_AGNOSTIC = "language_agnostic"


class Severity(str, enum.Enum):
    ERROR = "error"
    WARNING = "warning"
    ADVICE = "advice"


class Analyzer(str, enum.Enum):
    REGEX = "regex"
    AST = "ast"  # semgrep's rules for Python, matched here
    SEMGREP = "semgrep"


class Treatment(str, enum.Enum):
    BLOCK = "block"
    WARN = "warn"
    IGNORE = "ignore"


@dataclass(frozen=True)
class Issue:
    """One finding. `line` and `char` count from 1 in the text that was given; `pattern_id` names the rule."""

    description: str
    cwe_id: str
    severity: Severity
    rule: str | None = None
    line: int | None = None
    path: str | None = None
    char: int | None = None
    name: str | None = None
    original: str | None = None
    replacement: str | None = None
    analyzer: Analyzer | None = None
    pattern_id: str | None = None
    language: Language | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class CodeShieldScanResult:
    """`errors`: why a rule could not be applied; then the code counts as insecure and is to be blocked.
    `not_covered`: what was not looked at, in words, since a tool for it is not installed.
    """

    is_insecure: bool
    issues_found: list[Issue] | None
    recommended_treatment: Treatment
    errors: tuple[str, ...] = ()
    not_covered: tuple[str, ...] = field(default=())
