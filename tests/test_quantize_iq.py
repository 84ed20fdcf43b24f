"""The codebook types' quantizers: never worse than llama.cpp's, one result on every tier, always finite."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from quantize_iq_cases import (
    KINDS,
    WITH_IMPORTANCE_ONLY,
    Floats,
    cases,
    errors,
    importance,
    matrix,
    reference_weights,
)

from pyllamacpu.errors import OptionError
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.model.codebooks import ensure_codebook
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.native import ffi, isa_names, isa_selected, lib
from pyllamacpu.weights.blocks import needs_importance, quantize

T = TensorType
PEER = json.loads((Path(__file__).parent / "fixtures" / "quantize_iq.json").read_text())
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def after(x: Floats, kind: TensorType, columns: Floats | None) -> Floats:
    return dequantize(quantize(x, kind, columns), kind, x.shape)


@pytest.mark.parametrize(("kind", "name", "weighted"), cases(), ids=str)
def test_errors_are_below_the_peers(kind: TensorType, name: str, weighted: bool) -> None:
    x, columns = matrix(name), importance() if weighted else None
    ours = errors(x, after(x, kind, columns), kind, columns)
    theirs = PEER[f"{kind.name} {name} {'importance' if weighted else 'plain'}"]
    assert ours[0] < theirs[0] and ours[1] < theirs[1]


@every_kind
def test_the_gguf_package_reads_the_same_values(kind: TensorType) -> None:
    x = matrix("heavy")
    packed = quantize(x, kind, importance())
    expected = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType(kind))
    np.testing.assert_array_equal(dequantize(packed, kind, x.shape), expected)


def hostile_rows() -> Floats:
    rng = np.random.default_rng(3)
    noise = rng.standard_normal((9, 512))
    rows = [np.full(512, value) for value in (0.0, -0.0, 1.0, -3.4e38, 1e30, 1e5, 6e-8, 1e-30, 1e-45)]
    rows += [
        row * size for row, size in zip(noise, (1e37, 1e-7, 1e-41, 1e6, 1.0, 1.0, 1.0, 1.0, 1.0), strict=True)
    ]
    rows[-1][77] = 1e6  # one outlier
    rows[-2] *= np.repeat(10.0 ** rng.integers(-9, 9, 32), 16)  # every sub-block of another size
    rows[-3][:] = 0
    rows[-3][300] = -5
    rows[-4] = np.sign(rows[-4])
    rows[-5][:256] = 0
    return np.clip(np.array(rows), -3.4e38, 3.4e38).astype(np.float32)


def hostile_importance(kind: TensorType) -> Iterator[Floats | None]:
    rng = np.random.default_rng(4)
    columns = [np.zeros(512), np.ones(512), rng.integers(0, 2, 512), 10.0 ** rng.integers(-38, 38, 512)]
    columns += [np.full(512, 1e38), np.full(512, 1e-44)]
    yield from (column.astype(np.float32) for column in columns)
    if kind not in WITH_IMPORTANCE_ONLY:
        yield None


@every_kind
def test_hostile_values_stay_finite_on_every_tier(kind: TensorType) -> None:
    x, chosen = hostile_rows(), isa_selected()
    for columns in hostile_importance(kind):
        found = []
        try:
            for isa in isa_names():
                assert lib.pl_isa_select(isa.encode()) >= 0
                found.append(quantize(x, kind, columns, threads=1))
        finally:
            lib.pl_isa_select(chosen.encode())
        values = dequantize(found[0], kind, x.shape)
        assert np.isfinite(values).all()
        assert not values[:2].any() and not found[0][0].any()
        for other in found[1:]:
            np.testing.assert_array_equal(other, found[0])


@every_kind
def test_no_row_ends_worse_than_zeros(kind: TensorType) -> None:
    x = hostile_rows()
    columns = np.ones(512, np.float32)
    lost = np.square(x.astype(np.float64) - after(x, kind, columns))
    weights = reference_weights(x, kind, columns)
    zeros = (weights * x.astype(np.float64) ** 2).sum(axis=1)
    assert ((weights * lost).sum(axis=1) <= zeros * (1 + 1e-6)).all()


@every_kind
def test_important_columns_come_out_better(kind: TensorType) -> None:
    x = matrix("normal")
    columns = np.ones(512, np.float32)
    before = np.square(x - after(x, kind, columns))
    columns[::4] = 30
    better = np.square(x - after(x, kind, columns))
    assert better[:, ::4].sum() < 0.75 * before[:, ::4].sum()


@every_kind
def test_rows_do_not_depend_on_each_other_or_on_threads(kind: TensorType) -> None:
    x = np.tile(matrix("columns"), (50, 1))
    packed = quantize(x, kind, importance(), threads=2)
    np.testing.assert_array_equal(packed, np.tile(quantize(x[:12], kind, importance(), threads=1), (50, 1)))


@every_kind
def test_which_need_importance(kind: TensorType) -> None:
    assert needs_importance(kind) == (kind in WITH_IMPORTANCE_ONLY)
    if needs_importance(kind):
        with pytest.raises(OptionError, match="importance"):
            quantize(matrix("normal"), kind)
        ensure_codebook(kind)
        x, out = matrix("normal"), np.zeros(12 * kind.row_bytes(512), np.uint8)
        rc = lib.pl_quantize(
            kind, T.F32, ffi.from_buffer("float[]", x), 12, 512, ffi.NULL, ffi.from_buffer(out)
        )
        assert rc == lib.PL_QUANTIZE_EIMPORTANCE


# In a process of its own: codebooks are set once. Values that the format's own tables do not have.
STRANGE_CODEBOOKS = """
import sys
import numpy as np
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.native import ffi, lib

kind, fill = TensorType[sys.argv[1]], sys.argv[2]
n = lib.pl_codebook_missing(kind)
low, high = (-1, 1) if kind.name.startswith("IQ1") else (0, 63)
rng = np.random.default_rng(5)
values = {
    "lowest": np.full(n, low),
    "highest": np.full(n, high),
    "two": rng.choice([low, high], n),
    "four": rng.choice(np.linspace(low, high, 4).astype(int), n),
}[fill].astype(np.int8)
x = rng.standard_normal((3, 512)).astype(np.float32)
importance = np.ones(512, np.float32)
out = np.zeros((3, kind.row_bytes(512)), np.uint8)
back = np.zeros((3, 512), np.float32)
pointers = ffi.from_buffer("float[]", x), 3, 512, ffi.from_buffer("float[]", importance)
assert lib.pl_quantize(kind, 0, *pointers, ffi.from_buffer(out)) == lib.PL_EINVAL, "without a codebook"
assert lib.pl_set_codebook(kind, ffi.from_buffer("int8_t[]", values), n) == 0
assert lib.pl_codebook_missing(kind) == 0
rc = lib.pl_quantize(kind, 0, *pointers, ffi.from_buffer(out))
assert lib.pl_dequantize(kind, ffi.from_buffer(out), ffi.from_buffer("float[]", back), 3 * 512) == 0
assert np.isfinite(back).all()
print("refused" if rc == lib.PL_EINVAL else "written" if rc == 0 else rc)
"""


@pytest.mark.parametrize("fill", ["lowest", "highest", "two", "four"])
@every_kind
def test_any_codebook_that_can_be_set_is_searched_or_refused(kind: TensorType, fill: str) -> None:
    command = [sys.executable, "-c", STRANGE_CODEBOOKS, kind.name, fill]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    # IQ2_S is searched by halves, which have three levels; IQ1 has no more of them
    wanted = "refused" if kind is T.IQ2_S and fill == "four" else "written"
    assert (done.returncode, done.stdout.strip()) == (0, wanted), done.stderr
