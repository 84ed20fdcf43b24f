"""The codebooks of the IQ1, IQ2 and IQ3 types, handed to the C decoders when the first such tensor is met.

These types store indices into tables of 8 (IQ3: 4) magnitudes. The tables belong to the format's reference
implementation and come at run time from the `gguf` package, which is imported only when one is needed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import NativeError
from pyllamacpu.forks import fork_safe_lock
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.native import check, ffi, lib

_lock = fork_safe_lock()


def ensure_codebook(kind: TensorType) -> None:
    """Gives C the codebook of `kind` if it has one that was not given yet; cheap when nothing is to do.

    Raises NativeError when the installed `gguf` package does not have the table.
    """
    if not lib.pl_codebook_missing(kind):
        return
    with _lock:
        n_values = lib.pl_codebook_missing(kind)
        if not n_values:  # another thread was faster
            return
        values = _codebook(kind)
        if values.size != n_values:
            raise _unusable(kind, f"it has {values.size} values instead of {n_values}")
        rc = lib.pl_set_codebook(kind, ffi.from_buffer("int8_t[]", values), n_values)
        check(rc, f"setting the codebook of {kind.name}")


def _codebook(kind: TensorType) -> npt.NDArray[np.int8]:
    """The table of `kind` from the gguf package: (n_entries * values per entry,), entry by entry."""
    try:
        from gguf import quants  # here, because its import is slow and seldom needed

        source = getattr(quants, kind.name)
        source.init_grid()
        grid = np.asarray(source.grid, dtype=np.float32)
    except (ImportError, AttributeError, TypeError) as error:
        raise _unusable(kind, str(error)) from error
    values = grid.astype(np.int8).ravel()
    if not np.array_equal(values, grid.ravel()):
        raise _unusable(kind, "its values are not small integers")
    return values


def _unusable(kind: TensorType, reason: str) -> NativeError:
    return NativeError(
        f"the gguf package's table of {kind.name} cannot be used: {reason}; "
        "install gguf 0.10 or later, or use a model of another quantization"
    )
