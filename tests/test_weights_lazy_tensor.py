"""Lazy tensors and what can be made of them, against numpy on whole arrays."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from checkpoint_build import write_safetensors

from pyllamacpu.convert.formats.safetensors import read_safetensors
from pyllamacpu.errors import CheckpointError
from pyllamacpu.weights import lazy_ops, tensor_cache
from pyllamacpu.weights.data_file import DataFile
from pyllamacpu.weights.lazy_tensor import LazyTensor, decode, from_array

rng = np.random.default_rng(2)


def ranges(n: int) -> Iterator[tuple[int, int]]:
    yield 0, n
    yield from ((i, i) for i in (0, n))
    for _ in range(12):
        start, stop = sorted(rng.integers(0, n + 1, 2).tolist())
        yield start, stop


def same(tensor: LazyTensor, expected: npt.NDArray[Any]) -> None:
    """The tensor is `expected`, whatever rows are read."""
    assert tensor.shape == expected.shape
    for start, stop in ranges(tensor.n_rows):
        assert np.array_equal(tensor.read(start, stop), expected[start:stop])
        raw = tensor.raw(start, stop)
        assert raw.shape == expected[start:stop].shape
    for start, stop in ((-1, 1), (0, tensor.n_rows + 1), (2, 1)):
        with pytest.raises(IndexError):
            tensor.read(start, stop)


@pytest.fixture(params=["file", "memory", "opaque"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Makes a lazy tensor of an array: read from a file, in memory, or known by its rows only."""
    made = 0

    def build(array: npt.NDArray[Any]) -> LazyTensor:
        nonlocal made
        made += 1
        if request.param == "file":
            path = write_safetensors(tmp_path / f"{made}.safetensors", {"t": array})
            return read_safetensors(path)[0]["t"]
        tensor = from_array(array, f"t{made}")
        if request.param == "opaque":
            return LazyTensor(tensor.shape, tensor.dtype, tensor.source, tensor.stored)
        return tensor

    return build


def array(*shape: int) -> npt.NDArray[np.float32]:
    return rng.standard_normal(shape).astype(np.float32)


def test_concatenate_and_stack(make: Any) -> None:
    for axis in (0, 1, 2):
        shapes = [[4, 6, 5], [4, 6, 5], [4, 6, 5]]
        for shape, n in zip(shapes, (3, 1, 7), strict=True):
            shape[axis] = n
        arrays = [array(*shape) for shape in shapes]
        same(lazy_ops.concatenate([make(a) for a in arrays], axis), np.concatenate(arrays, axis))
    arrays = [array(4, 6) for _ in range(3)]
    stacked = lazy_ops.stack([make(a) for a in arrays])
    same(stacked, np.stack(arrays))
    same(lazy_ops.reshape(stacked, (-1, 6)), np.concatenate(arrays))
    same(lazy_ops.select(stacked, 1), arrays[1])


def test_reshape_and_slices(make: Any) -> None:
    whole = array(6, 8, 5)
    tensor = make(whole)
    for shape in ((48, 5), (6, 40), (240,), (3, 2, 8, 5), (5, 48), (80, 3), (1, 240)):
        same(lazy_ops.reshape(tensor, shape), whole.reshape(shape))
        same(lazy_ops.reshape(lazy_ops.reshape(tensor, shape), (-1, 5)), whole.reshape(-1, 5))
    same(lazy_ops.slice_rows(tensor, 2, 5), whole[2:5])
    same(lazy_ops.reshape(lazy_ops.slice_rows(tensor, 2, 5), (24, 5)), whole[2:5].reshape(24, 5))
    same(lazy_ops.slice_axis(tensor, 1, 3, 8), whole[:, 3:8])
    same(lazy_ops.slice_axis(tensor, 2, 0, 2), whole[:, :, :2])
    same(lazy_ops.select(tensor, 4), whole[4])


def test_transpose(make: Any) -> None:
    whole = array(6, 8, 5)
    for axes in ((0, 2, 1), (2, 1, 0), (1, 0, 2), (0, 1, 2), None):
        same(lazy_ops.transpose(make(whole), axes), whole.transpose(axes))
    same(lazy_ops.transpose(lazy_ops.transpose(make(whole[0]))), whole[0])
    same(lazy_ops.cached(make(whole)), whole)


def test_pieces_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves of fused matrices and turned experts: nothing is read twice, nor what is not asked for."""
    monkeypatch.setattr(lazy_ops, "_PIECE", 64)
    whole = array(4, 32, 48)
    path = write_safetensors(tmp_path / "m.safetensors", {"t": whole})
    tensor = read_safetensors(path)[0]["t"]
    read = 0
    plain = DataFile.read

    def counted(file: DataFile, offset: int, n_bytes: int) -> npt.NDArray[np.uint8]:
        nonlocal read
        read += n_bytes
        return plain(file, offset, n_bytes)

    monkeypatch.setattr(DataFile, "read", counted)
    half = lazy_ops.slice_axis(tensor, 2, 24, 48)
    same(half, whole[:, :, 24:])
    same(lazy_ops.slice_axis(tensor, 1, 8, 20), whole[:, 8:20])
    turned = lazy_ops.transpose(half, (0, 2, 1))
    same(turned, whole[:, :, 24:].transpose(0, 2, 1))
    rows = lazy_ops.reshape(turned, (-1, 32))
    tensor_cache.release_all()
    read = 0
    found = np.concatenate([rows.read(i, i + 6) for i in range(0, 96, 6)])
    assert np.array_equal(found, whole[:, :, 24:].transpose(0, 2, 1).reshape(-1, 32))
    assert read == whole.nbytes // 2


def test_take_rows(make: Any) -> None:
    whole = array(64, 3)
    pairs = np.arange(64).reshape(4, 2, 8).transpose(0, 2, 1).reshape(-1)  # as rope's permutation
    for order in (pairs, rng.permutation(64), np.arange(64)[::-1], np.array([5, 5, 63, 0]), np.arange(0)):
        same(lazy_ops.take_rows(make(whole), order), whole[order])
    with pytest.raises(CheckpointError):
        lazy_ops.take_rows(make(whole), [64])


def test_scaling(make: Any) -> None:
    whole, rows, grid = array(10, 7), array(10, 1), array(4, 3)
    same(lazy_ops.scale_rows(make(whole), make(rows)), whole * rows)
    same(lazy_ops.scale_rows(make(whole), make(rows[:1, 0])), whole * rows[0])
    same(lazy_ops.scale_rows(make(whole), make(np.array(1.5, np.float32))), whole * np.float32(1.5))
    blocks = np.repeat(np.repeat(grid, 3, 0), 3, 1)[:10, :7]
    same(lazy_ops.scale_blocks(make(whole), make(grid), (3, 3)), whole * blocks)
    same(lazy_ops.map_rows(make(whole), np.negative), -whole)


def test_not_finite_without_warnings(make: Any) -> None:
    """Weights that are no numbers come through as they are; the converter refuses them by name."""
    whole = np.array([[np.inf, 1.0], [3e38, -np.inf]], np.float32)
    scales = np.array([0.0, 10.0], np.float32)
    found = lazy_ops.scale_rows(make(whole), make(scales)).read()
    assert np.isnan(found[0, 0]) and found[1].tolist() == [np.inf, -np.inf]
    assert make(np.array([1e300, -1e300])).read().tolist() == [np.inf, -np.inf]


def test_what_does_not_fit(make: Any) -> None:
    tensor = make(array(4, 6))
    for bad in (
        lambda: lazy_ops.concatenate([tensor, make(array(4, 5))], 0),
        lambda: lazy_ops.concatenate([tensor, make(np.zeros((4, 6), np.int32))], 0),
        lambda: lazy_ops.stack([tensor, make(array(5, 6))]),
        lambda: lazy_ops.reshape(tensor, (5, 5)),
        lambda: lazy_ops.reshape(tensor, (-1, 5)),
        lambda: lazy_ops.reshape(tensor, (-1, -1)),
        lambda: lazy_ops.slice_rows(tensor, 2, 5),
        lambda: lazy_ops.slice_axis(tensor, 1, 0, 7),
        lambda: lazy_ops.transpose(tensor, (0, 0)),
        lambda: lazy_ops.scale_rows(tensor, make(array(5))),
        lambda: lazy_ops.scale_blocks(tensor, make(array(2, 3)), (3, 3)),
    ):
        with pytest.raises(CheckpointError):
            bad()


def test_held_tensors_share_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_cache, "BUDGET", 3000)
    arrays = [array(10, 25) for _ in range(5)]  # 1000 bytes each
    tensors = [lazy_ops.transpose(from_array(a, "t")) for a in arrays]
    for _ in range(2):
        for tensor, expected in zip(tensors, arrays, strict=True):
            assert np.array_equal(tensor.read(0, 3), expected.T[:3])
            assert sum(a.nbytes for a in tensor_cache._arrays.values()) <= 4000  # the largest is not counted
    big = array(100, 100)
    assert np.array_equal(lazy_ops.cached(from_array(big, "big")).read(5, 6), big[5:6])
    assert max(a.nbytes for a in tensor_cache._arrays.values()) == big.nbytes
    assert sum(a.nbytes for a in tensor_cache._arrays.values()) <= 3000 + big.nbytes
    tensor_cache.release_all()
    assert not tensor_cache._arrays


def test_threads(tmp_path: Path) -> None:
    whole = array(500, 40)
    path = write_safetensors(tmp_path / "m.safetensors", {"t": whole})
    tensor = lazy_ops.transpose(read_safetensors(path)[0]["t"])
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda i: tensor.read(i, i + 1), list(range(40)) * 5))
    assert np.array_equal(np.concatenate(rows), np.tile(whole.T, (5, 1)))


def test_eight_bit_floats() -> None:
    codes = np.arange(256, dtype=np.uint8)
    e4m3, e5m2 = decode(codes, "F8_E4M3"), decode(codes, "F8_E5M2")
    assert e4m3[[0x00, 0x01, 0x07, 0x08, 0x38, 0x7E, 0xBC]].tolist() == [
        0.0,
        2.0**-9,
        7 * 2.0**-9,
        2.0**-6,
        1.0,
        448.0,
        -1.5,
    ]
    assert np.flatnonzero(np.isnan(e4m3)).tolist() == [0x7F, 0xFF] and np.signbit(e4m3[0x80])
    halves = (codes.astype(np.uint16) << 8).view(np.float16)  # E5M2 is the upper half of a float16
    assert np.array_equal(e5m2, halves.astype(np.float32), equal_nan=True)
    fnuz = decode(codes, "F8_E4M3FNUZ")
    assert np.flatnonzero(np.isnan(fnuz)).tolist() == [0x80] and fnuz[0x7F] == 240.0 and fnuz[0x40] == 1.0
    assert decode(codes, "F8_E5M2FNUZ")[[0x7F, 0x40]].tolist() == [57344.0, 1.0]
    assert decode(codes, "F8_E8M0")[[0, 127, 254]].tolist() == [2.0**-127, 1.0, 2.0**127]
    assert np.isnan(decode(codes, "F8_E8M0")[255])


def test_float_kinds_become_float32() -> None:
    halves = np.arange(65536, dtype=np.uint16)
    expected = halves.view(np.float16).astype(np.float32)
    assert np.array_equal(decode(halves, "F16").view(np.uint32), expected.view(np.uint32))
    finite = halves[halves & 0x7C00 != 0x7C00]  # without infinities it goes another way
    expected = finite.view(np.float16).astype(np.float32)
    assert np.array_equal(decode(finite, "F16").view(np.uint32), expected.view(np.uint32))
    assert decode(finite[:0], "F16").shape == (0,)
    doubles = np.array([1e300, 1 / 3, -1e-60])
    assert from_array(doubles, "d").read().tolist() == [np.inf, float(np.float32(1 / 3)), -0.0]
    with pytest.raises(CheckpointError):
        from_array(np.zeros(3, np.complex64), "c")
