"""Quantizing matrices to blocks: against the gguf package, and against what llama.cpp's quantizers reach."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from quantize_cases import DISTRIBUTIONS, QUANTIZED, Floats, errors, importance, key, matrix

from pyllamacpu.errors import ModelError, OptionError
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.native import ffi, isa_names, lib
from pyllamacpu.weights.blocks import can_quantize, needs_importance, quantize
from pyllamacpu.weights.lazy_tensor import decode

T = TensorType
PEER = json.loads((Path(__file__).parent / "fixtures" / "quantize_errors.json").read_text())["errors"]


def name_of(kind: TensorType) -> str:
    return kind.name


@pytest.mark.parametrize("kind", [T.F32, T.F16, T.BF16, T.Q8_0], ids=name_of)
def test_rounded_types_equal_the_reference(kind: TensorType) -> None:
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((37, 416)) * np.exp(rng.normal(0, 6, (37, 1)))
    weights = np.clip(weights, -60000, 60000).astype(np.float32)
    expected = gguf.quants.quantize(weights, gguf.GGMLQuantizationType(kind)).view(np.uint8)
    np.testing.assert_array_equal(quantize(weights, kind), expected.reshape(37, -1))


@pytest.mark.parametrize("cols", [32, 96, 4128, 65536])
@pytest.mark.parametrize("stored", [T.F32, T.F16, T.BF16], ids=name_of)
def test_weights_are_read_as_they_are_stored(stored: TensorType, cols: int) -> None:
    """The same blocks as of their values; what is not finite is found in every place."""
    rng = np.random.default_rng(cols)
    bits = rng.integers(0, 1 << 16, (3, cols), np.uint16)
    exponent = 0x7C00 if stored == T.F16 else 0x7F80
    bits[(bits & exponent) == exponent] = 1  # a subnormal
    stored_bits = decode(bits, "BF16") if stored == T.F32 else bits
    values = decode(stored_bits, stored.name)
    found = quantize(stored_bits, T.Q4_1, stored=stored)
    np.testing.assert_array_equal(found, quantize(values, T.Q4_1))
    for at in (*range(0, cols, max(1, cols // 37)), cols - 1):
        for wrong in (exponent, 0x8000 | exponent, exponent + 1, 0xFFFF):
            damaged = bits.copy()
            damaged[1, at] = wrong
            given = decode(damaged, "BF16") if stored == T.F32 else damaged
            with pytest.raises(ModelError, match=f"row 1, column {at} is"):
                quantize(given, T.Q4_1, stored=stored)


def test_halves_of_q8_0_go_away_from_zero_as_in_the_reference() -> None:
    weights = np.arange(-63.5, 64, 1, dtype=np.float32)[:96].reshape(3, 32)
    weights[:, 0] = 127
    expected = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(quantize(weights, T.Q8_0), expected)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("kind", QUANTIZED, ids=name_of)
def test_errors_are_at_most_the_peers(kind: TensorType, weighted: bool) -> None:
    for distribution in DISTRIBUTIONS:
        x, weights = matrix(distribution), importance() if weighted else None
        ours = errors(x, quantize(x, kind, weights), kind, weights)
        for sort, error in PEER[key(kind, distribution, weighted)].items():
            assert ours[sort] <= error, (
                f"{sort} error on {distribution}: {ours[sort] / error:.4f} of the peer's"
            )


@pytest.mark.parametrize("kind", QUANTIZED, ids=name_of)
def test_the_gguf_package_reads_the_blocks_alike(kind: TensorType) -> None:
    packed = quantize(matrix("outliers", rows=3), kind, importance())
    theirs = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType(kind))
    np.testing.assert_array_equal(dequantize(packed, kind, (3, 1024)), theirs)


# the share of the root mean square that may be lost on normal weights: a little over what each type reaches
LOSS = {T.Q8_0: 0.01, T.Q6_K: 0.02, T.Q5_K: 0.035, T.Q5_1: 0.035, T.Q5_0: 0.045, T.Q4_K: 0.07, T.Q4_1: 0.075}
LOSS |= {T.Q4_0: 0.09, T.IQ4_NL: 0.08, T.IQ4_XS: 0.08, T.Q3_K: 0.15, T.Q2_K: 0.3, T.MXFP4: 0.13}
LOSS |= {T.TQ1_0: 0.5, T.TQ2_0: 0.5}


@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("kind", QUANTIZED, ids=name_of)
def test_little_is_lost_at_any_size(kind: TensorType, size: float) -> None:
    x = np.random.default_rng(5).standard_normal((9, 768), dtype=np.float32) * np.float32(size)
    lost = dequantize(quantize(x, kind), kind, x.shape) - x
    assert np.sqrt((lost**2).mean() / (x**2).mean()) < LOSS[kind]


@pytest.mark.parametrize("kept", [0.02, 0.05, 0.5])
@pytest.mark.parametrize("kind", QUANTIZED, ids=name_of)
def test_weights_that_were_pruned_lose_no_more(kind: TensorType, kept: float) -> None:
    """Zeros beside large values: what counts by size alone leaves them to chance."""
    rng = np.random.default_rng(8)
    x = (rng.standard_normal((9, 768)) * (rng.random((9, 768)) < kept)).astype(np.float32)
    lost = dequantize(quantize(x, kind), kind, x.shape) - x
    assert np.sqrt((lost**2).mean() / (x**2).mean()) < LOSS[kind]


def hostile() -> Floats:
    """(rows, 512): zeros, constants, extremes, lone outliers, denormals, unequal halves, a staircase."""
    rng = np.random.default_rng(6)
    normal = rng.standard_normal((6, 512)).astype(np.float32)
    rows = [np.zeros(512), np.full(512, -0.0), np.full(512, 3.25), np.full(512, -1e-3), np.full(512, 1e30)]
    rows += [normal[0] * s for s in (1e30, 3e38 / 5, 1e-30, 1e-37, 1e-44, 1e-6, 60000.0)]
    outlier = normal[1] * 1e-3
    outlier[[7, 300]] = 1000, -1e30
    halves = np.where(np.arange(512) < 256, normal[2] * 1e20, normal[2] * 1e-20)
    alternating = np.where(np.arange(512) % 2, np.float32(3.4e38), np.float32(-3.4e38))
    offset = 1000 + normal[3] * 1e-3
    rows += [
        outlier,
        halves,
        alternating,
        offset,
        -offset,
        np.arange(512),
        np.abs(normal[4]),
        -np.abs(normal[5]),
    ]
    return np.stack(rows).astype(np.float32)


@pytest.mark.parametrize("weights", ["none", "some", "zero", "tiny", "huge"])
@pytest.mark.parametrize("kind", QUANTIZED, ids=name_of)
def test_hostile_values_stay_finite(kind: TensorType, weights: str) -> None:
    x = hostile()
    given = {"none": None, "some": np.arange(512) % 3, "zero": np.zeros(512)}
    given |= {"tiny": np.full(512, 1e-38), "huge": np.full(512, 3e38)}
    chosen = given[weights]
    packed = quantize(x, kind, None if chosen is None else chosen.astype(np.float32))
    values = dequantize(packed, kind, x.shape).astype(np.float64)
    assert np.isfinite(values).all()
    assert not values[:2].any()  # zeros stay zeros
    if weights == "some":
        return

    # never further off than writing zeros, block by block, whatever the size (but for rounding)
    def by_block(a: np.ndarray) -> np.ndarray:
        return np.sqrt((a.reshape(-1, kind.block_size) ** 2).mean(axis=1))

    assert (by_block(values - x) <= by_block(x.astype(np.float64)) * 1.001 + 1e-7).all()


def test_constant_rows_are_met() -> None:
    x = np.repeat(np.array([[3.25], [-1e-2], [0.7]], np.float32), 512, axis=1)
    for kind in QUANTIZED:
        values = dequantize(quantize(x, kind), kind, x.shape)
        assert np.abs(values / x - 1).max() < (0.2 if kind is T.MXFP4 else 0.01), kind.name


def test_ternary_weights_come_back_exactly() -> None:
    x = np.random.default_rng(7).integers(-1, 2, (4, 1024)).astype(np.float32) * np.float32(0.0625)
    for kind in (T.TQ1_0, T.TQ2_0):
        np.testing.assert_array_equal(dequantize(quantize(x, kind), kind, x.shape), x)


def test_16_bit_floats_saturate() -> None:
    x = np.array([[1e30, -65520, 3.4e38, -3.4e38, 65504, 1e-8]], np.float32)
    f16 = quantize(x, T.F16).view(np.float16)[0]
    np.testing.assert_array_equal(f16, np.array([65504, -65504, 65504, -65504, 65504, 0], np.float16))
    assert np.isfinite(dequantize(quantize(x, T.BF16), T.BF16, x.shape)).all()


@pytest.mark.parametrize("kind", QUANTIZED, ids=name_of)
def test_threads_and_neighbours_change_nothing(kind: TensorType) -> None:
    x, weights = matrix("outliers", rows=530), importance()  # more than one slab
    whole = quantize(x, kind, weights, threads=4)
    np.testing.assert_array_equal(whole, quantize(x, kind, weights, threads=1))
    for row in (0, 255, 529):
        np.testing.assert_array_equal(whole[row : row + 1], quantize(x[row : row + 1], kind, weights))


DIGEST = """
import hashlib
from quantize_cases import QUANTIZED, importance, matrix
from pyllamacpu.weights.blocks import quantize
digest = hashlib.sha256()
for kind in QUANTIZED:
    for distribution in ("outliers", "shifted"):
        for weights in (None, importance(768)):
            digest.update(quantize(matrix(distribution, 5, 768), kind, weights, threads=1).tobytes())
print(digest.hexdigest())
"""


def test_every_tier_writes_the_same_bytes() -> None:
    found = set()
    for isa in isa_names():
        environment = {**os.environ, "PYLLAMACPU_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", DIGEST]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=60
        )
        found.add(done.stdout)
    assert len(found) == 1
    assert len(found.pop().strip()) == hashlib.sha256().digest_size * 2


def test_not_a_number_is_refused_with_its_place() -> None:
    weights = np.ones((3000, 128), np.float32)
    weights[2500, 77] = np.nan
    with pytest.raises(ModelError, match="row 2500, column 77 is nan"):
        quantize(weights, T.Q8_0)
    weights[2500, 77] = -np.inf
    with pytest.raises(ModelError, match="row 2500, column 77 is -inf"):
        quantize(weights, T.F16, threads=1)


def test_importance_is_checked() -> None:
    weights = np.ones((2, 64), np.float32)
    assert can_quantize(T.Q8_0) and not needs_importance(T.Q8_0)
    for given in (np.ones(63, np.float32), -np.ones(64, np.float32), np.full(64, np.nan, np.float32)):
        with pytest.raises(OptionError, match="importance"):
            quantize(weights, T.Q8_0, given)
    with pytest.raises(OptionError, match="multiple"):
        quantize(weights[:, :40].copy(), T.Q8_0)
    with pytest.raises(OptionError, match="I32"):
        quantize(weights, T.I32)
    with pytest.raises(OptionError, match="float64"):
        quantize(weights.astype(np.float64), T.Q8_0)  # type: ignore[arg-type]


def test_the_c_entry_checks_its_arguments() -> None:
    x, out = ffi.new("float[512]"), ffi.new("uint8_t[4096]")
    bad = ffi.new("float[256]", [-1.0])
    assert lib.pl_quantize(T.Q4_K, T.F32, x, 2, 256, ffi.NULL, out) == 0
    for kind, cols in [
        (T.Q4_K, 128),
        (T.Q4_0, 33),
        (-1, 32),
        (T.I32, 32),
        (4, 32),
        (1 << 20, 32),
        (T.Q8_1, 32),
    ]:
        assert lib.pl_quantize(kind, T.F32, x, 1, cols, ffi.NULL, out) == lib.PL_EINVAL
    for stored in (-1, T.Q4_0, T.I32, T.F64):
        assert lib.pl_quantize(T.Q4_K, stored, x, 1, 256, ffi.NULL, out) == lib.PL_EINVAL
    assert lib.pl_quantize(T.Q4_K, T.F32, x, -1, 256, ffi.NULL, out) == lib.PL_EINVAL
    assert lib.pl_quantize(T.Q4_K, T.F32, x, 2, 256, bad, out) == lib.PL_QUANTIZE_EIMPORTANCE
    x[511] = float("inf")
    assert lib.pl_quantize(T.Q4_K, T.F32, x, 2, 256, ffi.NULL, out) == lib.PL_QUANTIZE_ENAN
    assert lib.pl_quantize(T.Q4_K, T.F32, x, 1, 256, ffi.NULL, out) == 0


def test_empty_matrices() -> None:
    assert quantize(np.empty((0, 256), np.float32), T.Q4_K).shape == (0, 144)
    assert quantize(np.empty((3, 0), np.float32), T.Q4_K).shape == (3, 0)
