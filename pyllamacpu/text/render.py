"""Compiling and rendering a Jinja chat template inside the sandbox, in this process.

Failures are `RenderError`s of a few kinds, plain enough to cross a pipe: `render_process` runs this module
in a child process for templates that are nobody's known ones.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2

from pyllamacpu.text.render_error import RenderError
from pyllamacpu.text.sandbox import LimitError, TemplateEnvironment, limited


class CompiledTemplate:
    """A template ready to render. Raises RenderError ("syntax" or "compile") for a broken source."""

    def __init__(self, source: str) -> None:
        environment = TemplateEnvironment()
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise RenderError("syntax", error.message or "", error.lineno) from error
        except Exception as error:  # constants are folded here: foreign code can raise anything
            raise RenderError("compile", _words(error)) from error

    def render(self, values: Mapping[str, Any]) -> str:
        """The text, or RenderError ("refused" in the template's own words, "stopped", "failed")."""
        try:
            with limited():
                return self._template.render(values)
        except RenderError:
            raise
        except LimitError as error:
            raise RenderError("stopped", str(error)) from error
        except RecursionError as error:
            raise RenderError("stopped", "it calls itself without end") from error
        except MemoryError as error:
            raise RenderError("stopped", "it takes too much memory") from error
        except Exception as error:  # a template is foreign code: it can raise anything
            raise RenderError("failed", _words(error), _line_of(error)) from error


def _refuse(message: object) -> NoReturn:
    raise RenderError("refused", str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _line_of(error: Exception) -> int:
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno or 0 for frame in reversed(frames) if frame.filename == "<template>"), 0)


def _words(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__
