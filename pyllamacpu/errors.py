"""Every error this package raises on purpose, as one class tree.

A message says what was wrong, where (the file, the option, the op) and what to do about it. The command line
prints it as one line and exits with 1; anything that is not a `PyllamacpuError` is a bug.
"""

from __future__ import annotations

from os import PathLike
from typing import Any


class PyllamacpuError(Exception):
    """Base of all errors of this package. They go between processes (pickle), whatever made them."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (type(self), self.args, self.__dict__)


def _unpickled(
    kind: type[PyllamacpuError], args: tuple[Any, ...], attributes: dict[str, Any]
) -> PyllamacpuError:
    """An error as it was, without its constructor, which takes other arguments than `args`."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class _FileError(PyllamacpuError):
    """`path` is the file, `reason` what is wrong with it."""

    def __init__(self, path: str | PathLike[str], reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


class GGUFError(_FileError):
    """A model file that is damaged, truncated or not GGUF. `path` is the file, `reason` what is wrong with
    it.
    """


class CheckpointError(_FileError):
    """A checkpoint (safetensors, torch, Meta, quantized) that is damaged, incomplete or of an unknown kind,
    or weights of any source that are no numbers. `path` is the file or folder, `reason` what is wrong
    with it.
    """


class OutputError(_FileError):
    """A file that cannot be written, or must not be: an input, a folder, a disk without room. `path` is the
    file, `reason` why.
    """


class ModelError(PyllamacpuError):
    """A sound file that cannot be run: unknown architecture, missing tensor, shapes that do not fit the
    config.
    """


class AdapterError(_FileError):
    """An adapter that cannot be applied: damaged, of another kind, or of another model. `path` is the file,
    `reason` what is wrong with it.
    """


class TokenizerError(PyllamacpuError, ValueError):
    """A tokenizer that cannot be built from the file, or a token id outside the vocabulary."""


class TemplateError(PyllamacpuError, ValueError):
    """A chat template that does not compile, or that refuses the messages given to it."""


class TextSizeError(TemplateError):
    """Messages with more characters than a chat template is given."""


class ContextError(PyllamacpuError, ValueError):
    """A prompt longer than the context, or a context that does not fit in memory."""


class OptionError(PyllamacpuError, ValueError):
    """An option with an unknown name or a value outside its range."""


class ImageError(PyllamacpuError, ValueError):
    """An image that cannot be read or must not be: damaged, truncated, too large, of a format that is not
    read. `where` is the file or the place in a request, `reason` what is wrong with it.
    """

    def __init__(self, where: str | PathLike[str], reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = str(where)
        self.reason = reason


class UnseenImageError(ImageError):
    """An image for a model or guard that reads texts only."""


class RequestCancelled(PyllamacpuError):
    """A request that somebody else ended while it was waited for."""


class StoreError(PyllamacpuError, ValueError):
    """A model that cannot be found, downloaded or verified."""


class NativeError(PyllamacpuError):
    """The compiled extension refused a call: no such CPU tier, out of memory, an impossible plan."""


class NoTokenError(NativeError):
    """No token is left that could come next: biases, processors and the form of the answer exclude all."""


class Abandoned(PyllamacpuError):
    """Long work whose client has left: it ends, and what it began to write goes."""
