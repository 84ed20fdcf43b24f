"""Panels have the same bytes whichever way they are packed."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from pyllamacpu.gguf.types import TensorType
from pyllamacpu.native import ffi, lib, thread_pool

T = TensorType
ROWS = 21  # a whole panel and one that is padded

# of panels that were packed row by row, as releases before 2026-11-30 did
# fmt: off
DIGESTS = {
    T.F32: "a50f52a5964f", T.F16: "c84319c8d323", T.Q4_0: "d72c8aecd6dd",
    T.Q4_1: "30c53556a480", T.Q5_0: "bc2b286b4462", T.Q5_1: "7543acaeb925",
    T.Q8_0: "79e97210e896", T.Q2_K: "4925d760e691", T.Q3_K: "135fa5b2f295",
    T.Q4_K: "08777fd5573e", T.Q5_K: "357a0d1c23f1", T.Q6_K: "8479b375bd6c",
    T.IQ2_XXS: "1649eb875c98", T.IQ2_XS: "0b34fd1bb635", T.IQ3_XXS: "09cb55f7b67c",
    T.IQ1_S: "2ef134881452", T.IQ4_NL: "d72c8aecd6dd", T.IQ3_S: "1ffde7369f0b",
    T.IQ2_S: "c49d35dedc37", T.IQ4_XS: "85a498248b2a", T.IQ1_M: "17afec8e9dd3",
    T.BF16: "c84319c8d323", T.TQ1_0: "cc54ba47a2fa", T.TQ2_0: "948a0d35333a",
    T.MXFP4: "cb4b6744af89",
}
# fmt: on


@pytest.mark.parametrize("kind", DIGESTS, ids=lambda kind: kind.name)
def test_panels_have_their_bytes(kind: TensorType) -> None:
    is_float = kind in (T.F32, T.F16, T.BF16)
    cols = 77 if is_float else 512
    n_bytes = ROWS * cols // lib.pl_type_block_elements(kind) * lib.pl_type_block_bytes(kind)
    numbers = np.arange(n_bytes, dtype=np.uint32)
    source = np.empty(n_bytes + 1, np.uint8)
    source[1:] = numbers * np.uint32(2654435761) >> np.uint32(13)  # the lowest eight bits, at an odd address
    panels = np.full(2 * lib.pl_panel_bytes(kind, cols), 0xEE, np.uint8)
    lib.pl_pack_panels(
        thread_pool(1), kind, ffi.from_buffer(source) + 1, 0, ROWS, cols, 0, 2, ffi.from_buffer(panels)
    )
    assert hashlib.sha256(panels.tobytes()).hexdigest()[:12] == DIGESTS[kind]


def test_every_type_with_panels_is_covered() -> None:
    assert {kind for kind in TensorType if lib.pl_panel_bytes(kind, 512)} == set(DIGESTS)
