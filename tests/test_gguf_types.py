"""The Python table of tensor types against C's (types.def, kv_types.def) and against the `gguf` package's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gguf
import pytest

from pyllamacpu.errors import OptionError
from pyllamacpu.gguf.types import REMOVED_TYPES, TensorType, parse_type
from pyllamacpu.model.config import kv_types
from pyllamacpu.native import ffi, lib, thread_pool

RUNNABLE = """
F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S
IQ3_XXS IQ3_S IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4
"""


@pytest.mark.parametrize("kind", [t for t in TensorType if t.name in gguf.GGMLQuantizationType.__members__])
def test_layouts_are_those_of_the_gguf_package(kind: TensorType) -> None:
    theirs = gguf.GGMLQuantizationType[kind.name]
    assert theirs.value == kind
    if (
        kind is not TensorType.Q8_1
    ):  # the package still has the size from before its float32 scales became float16
        assert gguf.GGML_QUANT_SIZES[theirs] == (kind.block_size, kind.block_bytes)


def test_no_type_of_the_gguf_package_is_missing() -> None:
    assert {t.name for t in gguf.GGMLQuantizationType} <= set(TensorType.__members__)
    assert not set(REMOVED_TYPES) & set(TensorType)


def test_the_runnable_types() -> None:
    assert {t.name for t in TensorType if t.runnable} == set(RUNNABLE.split())


# Numbers that the table has no row for: outside of it and in its holes (removed types, integers, types that
# only files hold).
NO_TYPES = [
    -(1 << 31),
    -40,
    -1,
    4,
    5,
    9,
    15,
    24,
    28,
    31,
    33,
    36,
    38,
    40,
    43,
    255,
    256,
    1 << 16,
    (1 << 31) - 1,
]


def test_c_and_python_have_the_same_rows() -> None:
    in_c = {number for number in range(-300, 1 << 12) if lib.pl_type_block_elements(number) > 0}
    assert in_c == {kind for kind in TensorType if kind.runnable}
    for number in in_c:
        kind = TensorType(number)
        assert ffi.string(lib.pl_type_name(number)).decode() == kind.name
        assert (lib.pl_type_block_elements(number), lib.pl_type_block_bytes(number)) == (
            kind.block_size,
            kind.block_bytes,
        )
        sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)]
        assert sizes == (kind.block_size, kind.block_bytes)


def test_float_types() -> None:
    assert [kind.name for kind in TensorType if kind.is_float] == ["F32", "F16", "BF16"]


def test_words_lie_inside_their_block() -> None:
    for kind in TensorType:
        ends = [0]
        for offset, width, count in kind.words:
            assert offset >= ends[-1] and width in (2, 4, 8) and count > 0, kind.name
            ends.append(offset + width * count)
        assert ends[-1] <= kind.block_bytes, kind.name


def test_types_of_the_cache() -> None:
    names = ["F32", "F16", "BF16", "Q8_0", "Q4_0"]
    assert [kind.name for kind in kv_types()] == names
    for kind in TensorType:
        for head_dim in (1, 15, 16, 17, 31, 32, 33, 64, 80, 128, 1024):
            unit = max(16, kind.block_size)
            padded = -(-head_dim // unit) * unit
            expected = kind.row_bytes(padded) if kind.name in names else lib.PL_EINVAL
            assert lib.pl_kv_row_bytes(kind, head_dim) == expected, (kind.name, head_dim)
    for head_dim in (0, -1, -(1 << 31)):
        assert lib.pl_kv_row_bytes(TensorType.F16, head_dim) == lib.PL_EINVAL


def test_a_cache_is_as_large_as_its_rows() -> None:
    for k in kv_types():
        for v in kv_types():
            cache = ffi.gc(lib.pl_cache_new(3, 2, 40, 48, k, v), lib.pl_cache_free)
            row = lib.pl_kv_row_bytes(k, 40) + lib.pl_kv_row_bytes(v, 48)
            assert lib.pl_cache_page_bytes(cache) == lib.PL_PAGE_POSITIONS * 3 * 2 * row


@pytest.fixture(scope="module")
def pool() -> Iterator[Any]:
    yield thread_pool(1)


@pytest.mark.parametrize("number", NO_TYPES)
def test_no_entry_of_c_takes_a_number_without_a_row(number: int, pool: Any) -> None:
    floats, blocks = ffi.new("float[1024]"), ffi.new("uint8_t[4096]")
    codes, scale, minimum = ffi.new("int8_t[32]"), ffi.new("float[2]"), ffi.new("float[2]")
    assert lib.pl_type_name(number) == ffi.NULL
    refused = {
        lib.pl_type_block_elements(number),
        lib.pl_type_block_bytes(number),
        lib.pl_type_group(number),
        lib.pl_type_has_min(number),
        lib.pl_set_codebook(number, codes, 32),
        lib.pl_dequantize(number, blocks, floats, 256),
        lib.pl_dequantize(number, blocks, floats, 0),
        lib.pl_decode32(number, blocks, 0, codes, scale, minimum),
        lib.pl_quantize_known(number),
        lib.pl_quantize(number, TensorType.F32, floats, 1, 256, floats, blocks),
        lib.pl_quantize(TensorType.Q4_0, number, floats, 1, 256, floats, blocks),
        lib.pl_kv_row_bytes(number, 64),
    }
    assert refused == {lib.PL_EINVAL}
    assert lib.pl_codebook_missing(number) == 0
    assert lib.pl_matrix_new(pool, ffi.NULL, number, blocks, 0, 1, 256) == ffi.NULL
    assert lib.pl_cache_new(1, 1, 32, 32, number, TensorType.F16) == ffi.NULL
    assert lib.pl_cache_new(1, 1, 32, 32, TensorType.F16, number) == ffi.NULL


@pytest.mark.parametrize("kind", [t for t in TensorType if t.runnable], ids=lambda kind: kind.name)
def test_matrices_that_are_no_whole_blocks_are_refused(kind: TensorType, pool: Any) -> None:
    blocks = ffi.new("uint8_t[4096]")
    for rows, cols in [(0, 256), (-1, 256), (1, 0), (1, -256), (1, kind.block_size + 1)]:
        if cols % kind.block_size or rows < 1 or cols < 1:
            assert lib.pl_matrix_new(pool, ffi.NULL, kind, blocks, 0, rows, cols) == ffi.NULL


def test_row_bytes() -> None:
    assert TensorType.F16.row_bytes(7) == 14
    assert TensorType.Q4_0.row_bytes(96) == 54
    assert TensorType.Q6_K.row_bytes(512) == 420
    with pytest.raises(OptionError, match="multiple of 256"):
        TensorType.Q4_K.row_bytes(96)


def test_types_by_name() -> None:
    assert parse_type("q4_k") is TensorType.Q4_K
    assert parse_type(" BF16 ") is TensorType.BF16
    with pytest.raises(OptionError, match="q9_9"):
        parse_type("q9_9")
