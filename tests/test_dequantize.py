"""Every tensor type against the `gguf` package, bit for bit, and the integer form against the float one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from pyllamacpu.errors import ModelError, NativeError
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.model import codebooks
from pyllamacpu.model.codebooks import ensure_codebook
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.native import ffi, lib

T = TensorType
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

PLAIN = [T.F32, T.F16, T.BF16]
SMALL = [T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.IQ4_NL, T.MXFP4]
SUPER = [
    *(T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K, T.IQ4_XS, T.TQ1_0, T.TQ2_0),
    *(T.IQ1_S, T.IQ1_M, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ3_XXS, T.IQ3_S),
]
QUANTIZED = SMALL + SUPER
CODEBOOK = [kind for kind in SUPER if kind.name.startswith(("IQ1", "IQ2", "IQ3"))]
WITH_MIN = {T.Q4_1, T.Q5_1, T.Q2_K, T.Q4_K, T.Q5_K}
PER_16 = {T.Q2_K, T.Q3_K, T.Q6_K, T.IQ1_M, T.IQ2_XS, T.IQ2_S}

# where the binary16 scales of a block begin (bytes); IQ1_M spreads its one over four nibbles, MXFP4 has none
SCALES_AT = {
    **dict.fromkeys((T.Q4_0, T.Q5_0, T.Q8_0, T.IQ4_NL, T.IQ4_XS, T.IQ1_S, T.IQ2_XXS), (0,)),
    **dict.fromkeys((T.IQ2_XS, T.IQ2_S, T.IQ3_XXS, T.IQ3_S), (0,)),
    **dict.fromkeys((T.Q4_1, T.Q5_1, T.Q4_K, T.Q5_K), (0, 2)),
    **{T.Q2_K: (80, 82), T.Q3_K: (108,), T.Q6_K: (208,), T.TQ1_0: (52,), T.TQ2_0: (64,), T.MXFP4: ()},
}
ZEROS, ONES = (0x0000, 0x8000), (0x3C00, 0xBC00)
SUBNORMAL = (0x0001, 0x8001, 0x0200, 0x03FF, 0x83FF)
SMALLEST_NORMAL, LARGEST = (0x0400, 0x8400), (0x7BFF, 0xFBFF)
NOT_FINITE = (0x7C00, 0xFC00, 0x7E00, 0xFE01)


@pytest.fixture(autouse=True)
def quiet_arithmetic() -> Iterator[None]:
    """numpy warns where scales overflow or are no numbers; here they are meant to be."""
    with np.errstate(all="ignore"):
        yield


def put_scale(blocks: Bytes, kind: TensorType, scales: npt.NDArray[np.uint16]) -> None:
    """Overwrite the binary16 fields of `blocks` (n, block_bytes); `scales`: (n, fields) bit patterns."""
    if kind is T.IQ1_M:
        words = blocks[:, 48:56].view(np.uint16)  # (n, 4); on top of each a nibble of the scale, lowest first
        nibbles = scales[:, :1] >> np.array([0, 4, 8, 12], dtype=np.uint16) & 15
        words[:] = words & 0x0FFF | nibbles << 12
    for field, offset in enumerate(SCALES_AT.get(kind, ())):
        blocks[:, offset : offset + 2] = scales[:, field : field + 1].copy().view(np.uint8)


def random_blocks(kind: TensorType, n_blocks: int, seed: int, pool: tuple[int, ...] = ()) -> Bytes:
    """Blocks of random bytes whose scales are finite, or drawn from `pool` (bit patterns of binary16)."""
    rng = np.random.default_rng([seed, kind])
    blocks = rng.integers(0, 256, (n_blocks, kind.block_bytes), dtype=np.uint8)
    scales = rng.integers(0, 0x7C00, (n_blocks, 2)) | rng.integers(0, 2, (n_blocks, 2)) << 15
    if pool:
        scales = rng.choice(np.array(pool), (n_blocks, 2))
    put_scale(blocks, kind, scales.astype(np.uint16))
    return blocks


def reference(blocks: Bytes, kind: TensorType) -> Floats:
    return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(kind)).ravel()


def ours(blocks: Bytes, kind: TensorType) -> Floats:
    return dequantize(blocks, kind, (len(blocks), kind.block_size)).ravel()


def assert_same_bits(actual: Floats, expected: Floats) -> None:
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


def decode32(blocks: Bytes, kind: TensorType) -> tuple[npt.NDArray[np.int8], Floats, Floats]:
    """q (n, 32), scale and min (n, 2) of all sub-blocks, in order."""
    ensure_codebook(kind)
    subs = kind.block_size // 32
    n = len(blocks) * subs
    q, scale, minimum = np.empty((n, 32), np.int8), np.empty((n, 2), np.float32), np.empty((n, 2), np.float32)
    for i in range(n):
        block = ffi.from_buffer("uint8_t[]", blocks[i // subs])
        out = ffi.from_buffer("int8_t[]", q[i]), *(ffi.from_buffer("float[]", a[i]) for a in (scale, minimum))
        assert lib.pl_decode32(kind, block, i % subs, *out) == 0
    return q, scale, minimum


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    "pool",
    [(), ZEROS, ONES, SUBNORMAL, SMALLEST_NORMAL, LARGEST],
    ids=["any", "zeros", "ones", "subnormal", "smallest", "largest"],
)
def test_random_bytes_decode_bit_for_bit(kind: TensorType, pool: tuple[int, ...]) -> None:
    blocks = random_blocks(kind, 8192 // kind.block_size * 4, seed=1, pool=pool)
    expected = reference(blocks, kind)
    assert not np.isnan(expected).any()
    assert_same_bits(ours(blocks, kind), expected)


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_scales_that_are_no_numbers_do_no_harm(kind: TensorType) -> None:
    blocks = random_blocks(kind, 64, seed=2, pool=NOT_FINITE)
    actual, expected = ours(blocks, kind), reference(blocks, kind)
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    finite = ~np.isnan(expected)
    np.testing.assert_array_equal(actual[finite], expected[finite])


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("byte", [0x00, 0xFF, 0x55, 0xAA, 0x80])
def test_uniform_bytes(kind: TensorType, byte: int) -> None:
    blocks = np.full((3, kind.block_bytes), byte, dtype=np.uint8)
    put_scale(blocks, kind, np.full((3, 2), 0x2E66, dtype=np.uint16))
    assert_same_bits(ours(blocks, kind), reference(blocks, kind))


@pytest.mark.parametrize("kind", [*SMALL[:5], T.TQ1_0, T.TQ2_0], ids=lambda kind: kind.name)
def test_quantized_weights_come_back(kind: TensorType) -> None:
    weights = np.random.default_rng(3).standard_normal((16, 512), dtype=np.float32)
    packed = gguf.quants.quantize(weights, gguf.GGMLQuantizationType(kind))
    actual = dequantize(packed, kind, weights.shape)
    assert_same_bits(actual, gguf.quants.dequantize(packed, gguf.GGMLQuantizationType(kind)))
    assert np.corrcoef(actual.ravel(), weights.ravel())[0, 1] > (0.6 if kind.name.startswith("TQ") else 0.99)


def test_halves_at_any_place_and_any_number_of_them() -> None:
    """32 go at once, the rest one by one: every pattern takes both ways."""
    patterns = np.arange(1 << 16, dtype=np.uint16)
    for start, n in ((0, 1 << 16), (1, 31), (5, 33), (0x7BF0, 95), (0xFC00 - 7, 40), (1 << 15, 63)):
        part = patterns[start : start + n].copy()
        found, expected = (
            dequantize(part.view(np.uint8), T.F16, (n,)),
            part.view(np.float16).astype(np.float32),
        )
        numbers = ~np.isnan(expected)
        assert_same_bits(found[numbers], expected[numbers])
        for i in range(min(n, 95)):  # NaN too: the bits do not depend on the place
            assert_same_bits(dequantize(part[i : i + 1].view(np.uint8), T.F16, (1,)), found[i : i + 1])


@pytest.mark.parametrize("kind", [T.F16, T.BF16], ids=lambda kind: kind.name)
def test_every_16_bit_float(kind: TensorType) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    actual = dequantize(patterns.view(np.uint8), kind, (256, 256)).ravel()
    expected = patterns.view(np.float16).astype(np.float32)
    if kind is T.BF16:
        expected = (patterns.astype(np.uint32) << 16).view(np.float32)
    numbers = ~np.isnan(expected)
    assert_same_bits(actual[numbers], expected[numbers])
    assert np.isnan(actual[~numbers]).all()


def test_float32_is_copied() -> None:
    data = np.random.default_rng(4).integers(0, 256, 4 * 35, dtype=np.uint8)
    assert dequantize(data, T.F32, (5, 7)).tobytes() == data.tobytes()


def test_every_mxfp4_exponent_and_value() -> None:
    blocks = np.empty((256, 17), dtype=np.uint8)
    blocks[:, 0] = np.arange(256)
    blocks[:, 1:] = np.arange(16) * 17  # both nibbles of byte i are i
    actual = dequantize(blocks, T.MXFP4, (256, 32)).astype(np.float64)
    e2m1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    values = np.tile(np.concatenate([e2m1, -e2m1]), 2)
    expected = 2.0 ** (np.arange(256)[:, None] - 127) * values
    expected[np.abs(expected) >= 2.0**128] *= np.inf
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_integer_form_gives_the_same_values(kind: TensorType) -> None:
    blocks = random_blocks(kind, 1024 // kind.block_size * 4, seed=5)
    if kind is T.MXFP4:
        blocks[:, 0] = np.random.default_rng(5).integers(60, 200, len(blocks))
    q, scale, minimum = decode32(blocks, kind)
    expected = reference(blocks, kind).reshape(-1, 2, 16)
    product = scale.astype(np.float64)[:, :, None] * q.reshape(-1, 2, 16)
    size = np.abs(product) + np.abs(minimum)[:, :, None]
    assert (np.abs(product - minimum[:, :, None] - expected) <= 1e-6 * size).all()
    if kind not in PER_16:
        np.testing.assert_array_equal(scale[:, 0], scale[:, 1])
    if kind not in WITH_MIN:
        assert not minimum.any()


def test_integers_have_the_range_that_kernels_expect() -> None:
    ranges = {T.Q4_0: (-8, 7), T.Q4_1: (0, 15), T.Q5_0: (-16, 15), T.Q5_1: (0, 31), T.Q8_0: (-128, 127)}
    ranges |= {T.Q2_K: (0, 3), T.Q3_K: (-4, 3), T.Q4_K: (0, 15), T.Q5_K: (0, 31), T.Q6_K: (-32, 31)}
    ranges |= {T.IQ1_S: (-9, 9), T.IQ1_M: (-9, 9), T.TQ1_0: (-1, 1), T.TQ2_0: (-1, 2)}
    ranges |= {T.MXFP4: (-12, 12), T.IQ4_NL: (-127, 113), T.IQ4_XS: (-127, 113)}
    for kind, expected in ranges.items():
        q, _, _ = decode32(random_blocks(kind, 2048 // kind.block_size * 4, seed=6), kind)
        assert (q.min(), q.max()) == expected, kind.name


def test_the_table_of_types_agrees_with_the_file_format() -> None:
    for kind in TensorType:
        if not kind.runnable:
            assert lib.pl_type_block_elements(kind) == lib.pl_type_group(kind) == lib.PL_EINVAL
            continue
        assert lib.pl_type_block_elements(kind) == kind.block_size
        assert lib.pl_type_block_bytes(kind) == kind.block_bytes
        assert ffi.string(lib.pl_type_name(kind)).decode() == kind.name
        assert lib.pl_type_has_min(kind) == (kind in WITH_MIN)
        assert lib.pl_type_group(kind) == (0 if kind in PLAIN else 16 if kind in PER_16 else 32)
    assert {kind for kind in TensorType if kind.runnable} == {*PLAIN, *QUANTIZED}


@pytest.mark.parametrize("kind", [-1, 4, 5, 9, 15, 24, 28, 40, 43, 1 << 30])
def test_unknown_types_are_refused(kind: int) -> None:
    buffer = ffi.new("float[256]")
    scratch = ffi.new("uint8_t[1024]"), ffi.new("int8_t[32]"), ffi.new("float[2]"), ffi.new("float[2]")
    assert lib.pl_dequantize(kind, scratch[0], buffer, 256) == lib.PL_EINVAL
    assert lib.pl_decode32(kind, scratch[0], 0, *scratch[1:]) == lib.PL_EINVAL
    assert lib.pl_type_block_bytes(kind) == lib.pl_type_has_min(kind) == lib.PL_EINVAL
    assert lib.pl_type_name(kind) == ffi.NULL
    with pytest.raises(ModelError, match="cannot be decoded"):
        dequantize(np.zeros(16, np.uint8), kind, (16,))


@pytest.mark.parametrize(
    ("kind", "sub"), [(T.Q4_0, 1), (T.Q4_0, -1), (T.Q4_K, 8), (T.IQ2_S, 8), (T.F32, 0), (T.F16, 0)]
)
def test_sub_blocks_outside_the_block_are_refused(kind: TensorType, sub: int) -> None:
    ensure_codebook(kind)
    out = ffi.new("int8_t[32]"), ffi.new("float[2]"), ffi.new("float[2]")
    assert lib.pl_decode32(kind, ffi.new("uint8_t[256]"), sub, *out) == lib.PL_EINVAL


def test_parts_of_blocks_are_refused() -> None:
    source, out = ffi.new("uint8_t[1024]"), ffi.new("float[512]")
    for kind, n in [(T.Q4_0, 31), (T.Q8_0, 33), (T.Q4_K, 128), (T.Q6_K, -256), (T.F32, -1)]:
        assert lib.pl_dequantize(kind, source, out, n) == lib.PL_EINVAL


@pytest.mark.parametrize("kind", [T.F16, T.Q4_1, T.Q6_K, T.IQ2_XS, T.IQ4_XS], ids=lambda kind: kind.name)
def test_source_at_any_address(kind: TensorType) -> None:
    blocks = random_blocks(kind, 512, seed=7) if kind in QUANTIZED else np.ones((512, 2), np.uint8)
    for shift in range(1, 4):
        moved = np.empty(blocks.size + shift, np.uint8)[shift:]
        moved[:] = blocks.ravel()
        assert_same_bits(ours(moved.reshape(blocks.shape), kind), ours(blocks, kind))


def test_shapes() -> None:
    blocks = random_blocks(T.Q4_0, 2 * 3 * 5, seed=8)
    values = dequantize(blocks.ravel(), T.Q4_0, (2, 3, 160))
    assert values.shape == (2, 3, 160)
    assert values.dtype == np.float32
    assert_same_bits(values.ravel(), reference(blocks, T.Q4_0))
    assert dequantize(np.empty(0, np.uint8), T.Q4_K, (0, 256)).shape == (0, 256)
    strided = np.repeat(blocks, 2, axis=0)[::2]
    assert_same_bits(ours(strided, T.Q4_0), values.ravel())


@pytest.mark.parametrize(
    ("n_bytes", "kind", "shape"),
    [
        (17, T.Q4_0, (32,)),
        (36, T.Q4_0, (32,)),
        (18, T.Q4_0, (4, 8)),  # rows are not whole blocks though the whole is one
        (144, T.Q4_K, (2, 128)),
        (18, T.Q4_0, (-1, -32)),
        (18, T.Q4_0, (1 << 40, 32)),
        (3, T.F32, ()),
    ],
)
def test_sizes_that_do_not_fit_are_refused(n_bytes: int, kind: TensorType, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=kind.name):
        dequantize(np.zeros(n_bytes, np.uint8), kind, shape)


def test_only_bytes_are_taken() -> None:
    with pytest.raises(ModelError, match="uint8"):
        dequantize(np.zeros(18, np.float32), T.Q4_0, (32,))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", CODEBOOK, ids=lambda kind: kind.name)
def test_codebooks_are_set_once(kind: TensorType) -> None:
    ensure_codebook(kind)
    assert lib.pl_codebook_missing(kind) == 0
    values = codebooks._codebook(kind)
    changed = values.copy()
    changed[0] ^= 1
    before = ours(random_blocks(kind, 16, seed=9), kind)
    assert lib.pl_set_codebook(kind, ffi.from_buffer("int8_t[]", values), values.size) == 0
    assert lib.pl_set_codebook(kind, ffi.from_buffer("int8_t[]", changed), changed.size) == lib.PL_EINVAL
    assert lib.pl_set_codebook(kind, ffi.from_buffer("int8_t[]", values), values.size - 8) == lib.PL_EINVAL
    assert_same_bits(ours(random_blocks(kind, 16, seed=9), kind), before)


def test_types_without_a_codebook_take_none() -> None:
    for kind in (T.F32, T.Q4_0, T.Q6_K, T.IQ4_XS, -3, 99):
        assert lib.pl_codebook_missing(kind) == 0
        assert lib.pl_set_codebook(kind, ffi.new("int8_t[16]"), 16) == lib.PL_EINVAL


FRESH_PROCESS = """
import sys
import numpy as np
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.native import ffi, lib

dequantize(np.zeros(144, np.uint8), TensorType.Q4_K, (256,))
assert "gguf" not in sys.modules, "imported without need"
out = ffi.new("float[256]")
needed = {"IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"}  # IQ1_M comes later and shares IQ1_S's
for kind in TensorType:
    n = lib.pl_codebook_missing(kind)
    assert (n > 0) == (kind.name in needed), kind
    if n:
        assert lib.pl_dequantize(kind, bytes(256), out, 256) == lib.PL_EINVAL
        parts = ffi.new("int8_t[32]"), ffi.new("float[2]"), ffi.new("float[2]")
        assert lib.pl_decode32(kind, bytes(256), 0, *parts) == lib.PL_EINVAL
        too_large = np.full(n, -128, np.int8)
        assert lib.pl_set_codebook(kind, ffi.from_buffer("int8_t[]", too_large), n) == lib.PL_EINVAL
        assert lib.pl_codebook_missing(kind) == n
        dequantize(np.zeros(kind.block_bytes, np.uint8), kind, (256,))
print("fine")
"""


def test_a_missing_codebook_is_an_error_and_comes_when_needed() -> None:
    command = [sys.executable, "-c", FRESH_PROCESS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.strip() == "fine", done.stderr


def test_an_unusable_table_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf.quants.IQ2_S, "grid", np.full((4, 8), 0.5, np.float32))
    with pytest.raises(NativeError, match=r"IQ2_S.*small integers"):
        codebooks._codebook(T.IQ2_S)
    monkeypatch.delattr(gguf.quants, "IQ2_S")
    with pytest.raises(NativeError, match="install gguf"):
        codebooks._codebook(T.IQ2_S)
