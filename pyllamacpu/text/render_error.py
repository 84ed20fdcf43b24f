"""Why a chat template could not be rendered; apart from `render`, which needs Jinja."""

from __future__ import annotations

from typing import Literal

Kind = Literal["syntax", "compile", "refused", "stopped", "failed"]


class RenderError(Exception):
    """`kind` says at what a template failed, `words` why, `line` where (0: unknown)."""

    def __init__(self, kind: Kind, words: str, line: int = 0) -> None:
        super().__init__(kind, words, line)
        self.kind, self.words, self.line = kind, words, line
