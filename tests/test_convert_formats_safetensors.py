"""safetensors files: what is read, and that nothing damaged is.

Covers convert/formats/json_file.py, convert/formats/shards.py.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_build import bf16_bits, safetensors_bytes, safetensors_header, write_index, write_safetensors
from safetensors.numpy import save_file

from pyllamacpu.convert.checkpoint import open_checkpoint
from pyllamacpu.convert.formats.safetensors import read_safetensors
from pyllamacpu.errors import CheckpointError
from pyllamacpu.weights import data_file

rng = np.random.default_rng(1)
SMALL = {
    "a": rng.standard_normal((4, 6)).astype(np.float32),
    "b": np.arange(5, dtype=np.int32),
    "c": np.arange(12, dtype=np.float16).reshape(2, 2, 3),
}


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_safetensors(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return caught.value.reason


def test_every_type(tmp_path: Path) -> None:
    types = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?")
    arrays = {t: (rng.standard_normal((3, 5)) * 50).astype(t) for t in types}
    arrays["none"] = np.zeros((0, 4), np.float32)
    arrays["one"] = np.array(2.5, np.float32)
    save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "np"})
    tensors, metadata = read_safetensors(tmp_path / "model.safetensors")
    assert metadata == {"format": "np"} and tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        tensor = tensors[name]
        assert tensor.shape == array.shape and str(tmp_path) in tensor.source and name in tensor.source
        expected = array.astype(np.float32) if array.dtype.kind == "f" else array
        got = tensor.read()
        assert got.dtype == expected.dtype
        assert np.array_equal(got.reshape(array.shape), expected)
        assert tensor.raw().tobytes() == array.tobytes()
        if array.ndim and len(array):
            assert np.array_equal(tensor.read(1, 2), got[1:2])


def test_bfloat16_is_exact(tmp_path: Path) -> None:
    bits = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    path = write_safetensors(tmp_path / "x.safetensors", {"w": bits}, {"w": "BF16"})
    tensor = read_safetensors(path)[0]["w"]
    assert np.array_equal(tensor.raw(3, 9), bits[3:9])
    assert np.array_equal(tensor.read(0, 256).view(np.uint32), bits.astype(np.uint32) << 16)
    assert bf16_bits(tensor.read(7, 8)).tolist() == bits[7:8].tolist()


def test_sharded(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "m-00001-of-00002.safetensors", {"a": SMALL["a"]})
    write_safetensors(tmp_path / "m-00002-of-00002.safetensors", {"b": SMALL["b"], "c": SMALL["c"]})
    places = {"a": "m-00001-of-00002.safetensors", "b": "m-00002-of-00002.safetensors"}
    places["c"] = places["b"]
    write_index(tmp_path / "model.safetensors.index.json", places)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for source in (tmp_path, tmp_path / "model.safetensors.index.json"):
        checkpoint = open_checkpoint(source)
        assert checkpoint.kind == "safetensors" and checkpoint.config == {"model_type": "llama"}
        assert [path.name for path in checkpoint.files] == sorted(set(places.values()))
        assert checkpoint.folder == tmp_path
        for name, array in SMALL.items():
            assert np.array_equal(checkpoint.tensors[name].read(), array.astype(array.dtype, copy=False))
    (tmp_path / places["b"]).unlink()
    lost = open_checkpoint(tmp_path).lost
    assert lost.keys() == {"b", "c"}
    for text in lost.values():
        assert "1 of its 2 files missing: m-00002" in text and "2 tensors are lost: b, c" in text


def test_a_folder_that_holds_the_model_twice(tmp_path: Path) -> None:
    """A note says which is read."""
    index, whole = tmp_path / "model.safetensors.index.json", tmp_path / "model.safetensors"
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    write_safetensors(tmp_path / shards[0], {"a": SMALL["a"]})
    write_safetensors(tmp_path / shards[1], {"b": SMALL["b"]})
    write_index(index, {"a": shards[0], "b": shards[1]})
    assert open_checkpoint(tmp_path).notes == ()
    write_safetensors(whole, {"a": SMALL["a"]})
    assert open_checkpoint(tmp_path).notes == (
        "model.safetensors left alone: the model is read from model.safetensors.index.json",
    )
    index.unlink()
    (note,) = open_checkpoint(tmp_path).notes
    assert note == f"{shards[0]} and 1 more files left alone: the model is read from model.safetensors"
    for shard in shards:
        (tmp_path / shard).unlink()
    write_index(index, {"a": whole.name})
    assert open_checkpoint(tmp_path).notes == ()


def test_index_that_lies(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "one.safetensors", {"a": SMALL["a"]})
    write_safetensors(tmp_path / "two.safetensors", {"a": SMALL["a"], "b": SMALL["b"]})
    index = tmp_path / "model.safetensors.index.json"
    write_index(index, {"a": "one.safetensors", "z": "one.safetensors"})
    assert "has no z, which model" in open_checkpoint(tmp_path).lost["z"]  # an error when it is needed
    write_index(index, {"a": "one.safetensors", "b": "two.safetensors"})
    with pytest.raises(CheckpointError, match="'a' is also at"):
        open_checkpoint(tmp_path)
    for name in ("../one.safetensors", "/etc/passwd", "", "..", "x/one.safetensors"):
        write_index(index, {"a": name})
        with pytest.raises(CheckpointError, match="not a file beside it"):
            open_checkpoint(tmp_path)
    for text in ("", "[]", "{}", '{"weight_map": 3}', "{" * 100_000, '{"weight_map": {"a": 3}}'):
        index.write_text(text)
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path)
    index.unlink()
    with pytest.raises(CheckpointError, match="'a' is also at"):  # loose files with one tensor twice
        open_checkpoint(tmp_path)


def test_numbered_files_without_index(tmp_path: Path) -> None:
    for number, key in enumerate(SMALL, 1):
        write_safetensors(tmp_path / f"model-0000{number}-of-00003.safetensors", {key: SMALL[key]})
    assert open_checkpoint(tmp_path).tensors.keys() == SMALL.keys()
    (tmp_path / "model-00002-of-00003.safetensors").rename(tmp_path / "other-00001-of-00001.safetensors")
    with pytest.raises(CheckpointError, match="parts of 2 checkpoints"):
        open_checkpoint(tmp_path)
    (tmp_path / "other-00001-of-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 of 3 files missing: model-00002-of-00003"):
        open_checkpoint(tmp_path)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint|not a checkpoint"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        open_checkpoint(tmp_path / "nothing")
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"no checkpoint|not a checkpoint"):
        open_checkpoint(tmp_path / "x.txt")


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    whole = safetensors_bytes(safetensors_header(SMALL, {}), b"".join(a.tobytes() for a in SMALL.values()))
    for length in range(len(whole)):
        refused(tmp_path / "m.safetensors", whole[:length])
    refused(tmp_path / "m.safetensors", whole + b"\0")
    (tmp_path / "m.safetensors").write_bytes(whole)
    assert set(read_safetensors(tmp_path / "m.safetensors")[0]) == set(SMALL)


BAD_VALUES: dict[str, list[Any]] = {
    "dtype": ["F31", "f32", None, 3, ["F32"], "F64", "C64"],
    "shape": [
        None,
        [-4, 6],
        [4, 6.0],
        [True, 24],
        "46",
        [4],
        [1 << 63, 1 << 63],
        [[4], 6],
        {"4": 6},
        [1] * 40,
    ],
    "data_offsets": [None, [0], [0, 96, 96], [96, 0], [-1, 95], [1, 97], [0, 1 << 64], [0, 100], [4, 100]],
}


@pytest.mark.parametrize("key", BAD_VALUES)
def test_wrong_descriptions(tmp_path: Path, key: str) -> None:
    data = b"".join(array.tobytes() for array in SMALL.values())
    for value in BAD_VALUES[key]:
        header = copy.deepcopy(safetensors_header(SMALL, {}))
        header["a"][key] = value
        reason = refused(tmp_path / "m.safetensors", safetensors_bytes(header, data))
        assert "'a'" in reason or "'b'" in reason or "before its first tensor" in reason
        del header["a"][key]
        assert "'a'" in refused(tmp_path / "m.safetensors", safetensors_bytes(header, data))


def test_wrong_headers(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    one = b'{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    assert "twice" in refused(path, safetensors_bytes(b'{"a":' + one + b',"a":' + one + b"}", b"x"))
    assert "overlap" in refused(path, safetensors_bytes(b'{"a":' + one + b',"b":' + one + b"}", b"x"))
    for text in (
        b"",
        b"[]",
        b"3",
        b"{",
        b'{"a":3}',
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"a":{}}',
        b'{"__metadata__":[]}',
    ):
        refused(path, safetensors_bytes(text, b""))
    gap = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}'
    assert "before its first" in refused(path, safetensors_bytes(gap, b"xy"))
    hole = b'{"a":' + one + b',"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}'
    assert "no tensor" in refused(path, safetensors_bytes(hole, b"xyz"))
    for length in (1 << 63, (1 << 64) - 1, 1 << 40, 100_000_001, 1000):
        refused(path, length.to_bytes(8, "little") + b"{}")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    assert "LFS" in refused(path, pointer)


def test_file_changed_while_open(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "m.safetensors", SMALL)
    tensor = read_safetensors(path)[0]["a"]
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(CheckpointError, match="changed"):
        tensor.read(0, 1)
    path.unlink()
    with pytest.raises(CheckpointError):
        tensor.read(0, 1)


def test_close(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "model.safetensors", SMALL)
    checkpoint = open_checkpoint(tmp_path)
    assert str(path) in data_file._POOL.handles
    for _ in range(2):
        assert np.array_equal(checkpoint.tensors["a"].read(), SMALL["a"])  # also after it was closed
        checkpoint.close()
        assert str(path) not in data_file._POOL.handles


def test_few_handles(tmp_path: Path) -> None:
    tensors = []
    for number in range(data_file.MAX_OPEN + 20):
        path = write_safetensors(
            tmp_path / f"{number}.safetensors", {f"t{number}": np.full(3, number, np.int32)}
        )
        tensors.append(read_safetensors(path)[0][f"t{number}"])
    for _ in range(2):
        assert [int(tensor.read(1, 2)[0]) for tensor in tensors] == list(range(len(tensors)))
        assert len(data_file._POOL.handles) <= data_file.MAX_OPEN
