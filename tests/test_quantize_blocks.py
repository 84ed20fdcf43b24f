"""Quantizing matrices to blocks: against the gguf package, and against what llama.cpp's quantizers reach."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from pyllamacpu.errors import ModelError, OptionError
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.quantize.blocks import can_quantize, needs_importance, quantize

T = TensorType


@pytest.mark.parametrize("kind", [T.F32, T.F16, T.BF16, T.Q8_0], ids=lambda kind: kind.name)
def test_rounded_types_equal_the_reference(kind: TensorType) -> None:
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((37, 416)) * np.exp(rng.normal(0, 6, (37, 1)))
    weights = np.clip(weights, -60000, 60000).astype(np.float32)
    expected = gguf.quants.quantize(weights, gguf.GGMLQuantizationType(kind)).view(np.uint8)
    np.testing.assert_array_equal(quantize(weights, kind), expected.reshape(37, -1))


def test_not_a_number_is_refused_with_its_place() -> None:
    weights = np.ones((3000, 128), np.float32)
    weights[2500, 77] = np.nan
    with pytest.raises(ModelError, match="row 2500, column 77 is nan"):
        quantize(weights, T.Q8_0)


def test_importance_is_checked() -> None:
    weights = np.ones((2, 64), np.float32)
    assert can_quantize(T.Q8_0) and not needs_importance(T.Q8_0)
    for importance in (np.ones(63, np.float32), -np.ones(64, np.float32), np.full(64, np.nan, np.float32)):
        with pytest.raises(OptionError, match="importance"):
            quantize(weights, T.Q8_0, importance)
    with pytest.raises(OptionError, match="multiple"):
        quantize(weights[:, :40].copy(), T.Q8_0)
    with pytest.raises(OptionError, match="I32"):
        quantize(weights, T.I32)
