"""torch files: all layouts that torch saves, and nothing damaged or forged."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from checkpoint_build import write_index
from conftest import FIXTURES
from torch_build import (
    PROTOCOL,
    STOP,
    dictionary,
    name,
    number,
    storage,
    tensor,
    text,
    write_torch,
    write_zip,
)

from pyllamacpu.convert.checkpoint import open_checkpoint
from pyllamacpu.convert.formats import torch_file
from pyllamacpu.convert.formats.torch_file import read_torch
from pyllamacpu.errors import CheckpointError

HERE = FIXTURES / "checkpoints"
DATA = np.arange(24, dtype=np.float32)


def refused(path: Path, content: bytes | None = None) -> str:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        for found in read_torch(path).values():
            found.read()
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("file", ["torch.bin", "torch_legacy.bin"])
@pytest.mark.parametrize("slab", [1, 100, 1 << 24])
def test_every_layout_that_torch_saves(file: str, slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_file, "_SLAB", slab)
    expected = np.load(HERE / "torch.npz")
    tensors = read_torch(HERE / file)
    assert set(expected.files) - tensors.keys() <= {"f8_e4m3", "f8_e5m2", "uint16"}
    assert len(tensors) >= 25
    for key, found in tensors.items():
        assert found.shape == expected[key].shape
        assert found.raw().tobytes() == expected[key].tobytes(), key
        for start in range(found.n_rows if found.shape else 0):
            assert found.raw(start, start + 1).tobytes() == expected[key][start : start + 1].tobytes(), key
            assert found.raw(start).tobytes() == expected[key][start:].tobytes(), key
    assert (
        tensors["bf16"].dtype == "BF16" and tensors["f64"].dtype == "F64" and tensors["bool"].dtype == "BOOL"
    )
    assert "f8_e4m3" not in tensors or tensors["f8_e4m3"].dtype == "F8_E4M3"


@pytest.mark.parametrize("file", ["torch_module.bin", "torch_training.bin", "torch_protocol5.bin"])
def test_state_dict_of_a_module(file: str) -> None:
    expected = np.load(HERE / "torch_module.npz")
    tensors = read_torch(HERE / file)
    assert list(tensors) == expected.files
    for key, found in tensors.items():
        assert np.array_equal(found.read(), expected[key])


@pytest.mark.parametrize("file", ["torch.bin", "torch_legacy.bin"])
def test_truncated_at_every_byte(tmp_path: Path, file: str) -> None:
    whole = (HERE / file).read_bytes()
    for length in range(0, len(whole) - 1, 29):
        refused(tmp_path / "m.bin", whole[:length])


@pytest.mark.parametrize("file", ["torch_module.bin", "torch_legacy.bin"])
def test_damaged_bytes_never_do_anything_else(tmp_path: Path, file: str) -> None:
    whole = bytearray((HERE / file).read_bytes())
    rng = np.random.default_rng(5)
    path = tmp_path / "m.bin"
    for _ in range(250):
        damaged = whole.copy()
        for at in rng.integers(0, len(whole), rng.integers(1, 4)):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            for found in read_torch(path).values():
                found.read()
        except CheckpointError as error:
            assert str(path) in str(error)


def test_sharded_with_index(tmp_path: Path) -> None:
    write_torch(tmp_path / "pytorch_model-00001-of-00002.bin", {"a": DATA})
    write_torch(tmp_path / "pytorch_model-00002-of-00002.bin", {"b": DATA.reshape(4, 6)})
    for number_, key in ((1, "a"), (2, "b")):
        assert read_torch(tmp_path / f"pytorch_model-0000{number_}-of-00002.bin").keys() == {key}
    assert open_checkpoint(tmp_path).tensors.keys() == {"a", "b"}  # without their index
    (tmp_path / "pytorch_model-00001-of-00002.bin").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="1 of 2 files missing: pytorch_model-00001-of-00002"):
        open_checkpoint(tmp_path)
    (tmp_path / "elsewhere").rename(tmp_path / "pytorch_model-00001-of-00002.bin")
    places = {key: f"pytorch_model-0000{n}-of-00002.bin" for key, n in (("a", 1), ("b", 2))}
    write_index(tmp_path / "pytorch_model.bin.index.json", places)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.kind == "torch" and np.array_equal(
        checkpoint.tensors["b"].read(1, 3), DATA.reshape(4, 6)[1:3]
    )
    (tmp_path / places["a"]).unlink()
    assert re.search(r"00001-of-00002\.bin.*lost: a", open_checkpoint(tmp_path).lost["a"])


def test_single_files(tmp_path: Path) -> None:
    write_torch(tmp_path / "pytorch_model.bin", {"a": DATA})
    assert open_checkpoint(tmp_path).kind == "torch"
    assert open_checkpoint(tmp_path / "pytorch_model.bin").tensors.keys() == {"a"}


def saved(path: Path, built: bytes, n_bytes: int = 96, **more: bytes) -> Path:
    return write_zip(
        path, PROTOCOL + dictionary({"t": built}) + STOP, {"0": DATA.tobytes()[:n_bytes]}, **more
    )


def test_forged_sizes_and_offsets(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    good = storage("FloatStorage", "0", 24)
    found = read_torch(saved(path, tensor(good, 4, (3, 2), (6, 2))))["t"]
    assert found.read().tolist() == [[4, 6], [10, 12], [16, 18]]
    big = 1 << 61
    for offset, shape, strides in (
        (0, (25,), (1,)),
        (24, (1,), (1,)),
        (-1, (2,), (1,)),
        (0, (2,), (24,)),
        (0, (2,), (-1,)),
        (0, (-2,), (1,)),
        (big, (1,), (1,)),
        (0, (big, 1), (0, 1)),
        (0, (100,), (0,)),
        (0, (2, big), (0, 1)),
        (0, (big,), (big,)),
        (0, (2, 3), (1,)),
        (0, (1,) * 70, (1,) * 70),
    ):
        refused(saved(path, tensor(good, offset, shape, strides)))
    for kind, key, length in (
        ("FloatStorage", "0", 25),
        ("FloatStorage", "0", 23),
        ("FloatStorage", "0", big),
        ("FloatStorage", "0", -24),
        ("DoubleStorage", "0", 24),
        ("FloatStorage", "1", 24),
        ("FloatStorage", "../data.pkl", 24),
        ("float32", "0", 24),
        ("Size", "0", 24),
    ):
        refused(saved(path, tensor(storage(kind, key, length), 0, (2,), (1,))))
    refused(saved(path, tensor(good, 0, (24,), (1,)), n_bytes=95))


def test_values_that_are_no_tensors(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    for built in (b"N", b"]", number(3), text("x"), b")", b"}", dictionary({"a": b"N"})):
        refused(write_zip(path, PROTOCOL + built + STOP, {}))
    number_key = b"}" + number(3) + tensor(storage("FloatStorage", "0", 24), 0, (2,), (1,)) + b"s"
    assert "without a name" in refused(write_zip(path, PROTOCOL + number_key + STOP, {"0": DATA.tobytes()}))
    one = tensor(storage("FloatStorage", "0", 24), 0, (2,), (1,))
    levels = PROTOCOL + dictionary({"a": one, "state_dict": dictionary({"b": one})}) + STOP
    assert "two levels" in refused(write_zip(path, levels, {"0": DATA.tobytes()}))
    for wrong in (b"N", number(3), text("x"), name("torch", "float32"), b"]"):
        refused(saved(path, tensor(wrong, 0, (2,), (1,))))
        refused(saved(path, name("torch._utils", "_rebuild_parameter") + b"(" + wrong + b"\x88}tR"))


def test_archives_that_are_not_torchs(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "x")
    assert "not torch's" in refused(path)
    good = write_torch(path, {"t": DATA}).read_bytes()
    with (
        zipfile.ZipFile(path) as archive,
        zipfile.ZipFile(tmp_path / "z.bin", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in archive.namelist():
            packed.writestr(entry, archive.read(entry))
    assert "compressed" in refused(tmp_path / "z.bin")
    big = write_zip(path, PROTOCOL + dictionary({}) + STOP, {}).read_bytes().replace(b"little", b"bigbig")
    assert "byte order" in refused(path, big)
    # the central directory sends the storage to the pickle's own bytes
    for forged in (0, 10, len(good), 0xFFFFFFFF):
        end = good.rindex(b"PK\x01\x02")
        damaged = bytearray(good)
        damaged[end + 42 : end + 46] = forged.to_bytes(4, "little")
        refused(path, bytes(damaged))
    assert "LFS" in refused(path, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    for content in (b"", b"x", b"PK", b"PK\x03\x04", b"\x80\x02", b"\x80" * 100, b"\x80\x02K\x01." * 10):
        refused(path, content)
