"""GGUF files as they are written, read back by this reader and by the `gguf` package.

Covers gguf/keys.py.
"""

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_build import small_file

from pyllamacpu.errors import GGUFError, OutputError
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.gguf.values import ValueType
from pyllamacpu.gguf.writer import GGUFWriter

RNG = np.random.default_rng(3)
ARRAYS = {
    "f32": RNG.standard_normal((3, 5), np.float32),
    "f16": RNG.standard_normal(7).astype(np.float16),
    "i8": RNG.integers(-9, 9, (2, 3, 4), np.int8),
    "i32": RNG.integers(-9, 9, (1, 1, 2, 3), np.int32),
}


def written(path: Path) -> Path:
    with GGUFWriter(path, "llama") as writer:
        writer.add("int", 7)
        writer.add("negative", -7)
        writer.add("large", 1 << 33)
        writer.add("float", 0.5)
        writer.add("double", 0.1, ValueType.FLOAT64)
        writer.add("byte", 200, ValueType.UINT8)
        writer.add("yes", True)
        writer.add("text", "tést")
        writer.add("texts", ["a", "", "€"])
        writer.add("floats", [1, 2.5])
        writer.add("shorts", np.int16([-1, 2]))
        writer.add("bools", [True, False])
        writer.add("numpy", np.float64(0.1))
        writer.add("empty", [], ValueType.STRING)
        for name, array in ARRAYS.items():
            writer.add_array(name, array)
        writer.add_array("q8", np.arange(2 * 68, dtype=np.uint8).reshape(2, 68), TensorType.Q8_0)
        writer.add_array("bf16", np.uint16([1, 2, 3]), TensorType.BF16)
    return path


def test_our_reader_reads_it(tmp_path: Path) -> None:
    with GGUFFile.open(written(tmp_path / "m.gguf")) as file:
        values = file.metadata
        assert file.version == 3 and values["general.architecture"] == "llama"
        assert (values["int"], values["negative"], values["large"]) == (7, -7, 1 << 33)
        assert (values["float"], values["double"], values["byte"], values["yes"]) == (0.5, 0.1, 200, True)
        assert values["text"] == "tést" and values["texts"] == ["a", "", "€"] and len(values["empty"]) == 0
        assert values["floats"].tolist() == [1, 2.5] and values["bools"].tolist() == [True, False]
        assert values["shorts"].tolist() == [-1, 2] and values["numpy"] == 0.1
        kinds = ["int", "negative", "large", "float", "double", "byte", "yes", "text", "numpy"]
        assert [values.value_type(key).name for key in kinds] == (
            ["UINT32", "INT32", "UINT64", "FLOAT32", "FLOAT64", "UINT8", "BOOL", "STRING", "FLOAT64"]
        )
        for name, array in ARRAYS.items():
            assert file.tensors[name].shape == array.shape and file.tensors[name].offset % 32 == 0
            np.testing.assert_array_equal(file.data(name).view(array.dtype).reshape(array.shape), array)
        assert file.tensors["q8"].shape == (2, 64) and file.tensors["q8"].type is TensorType.Q8_0
        np.testing.assert_array_equal(file.data("q8"), np.arange(136))
        assert file.tensors["bf16"].type is TensorType.BF16


def test_the_gguf_package_reads_it(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(written(tmp_path / "m.gguf"))
    values = {key: field.contents() for key, field in reader.fields.items()}
    assert values["general.architecture"] == "llama" and values["large"] == 1 << 33
    assert values["text"] == "tést" and values["texts"] == ["a", "", "€"] and values["bools"] == [True, False]
    assert values["shorts"] == [-1, 2] and values["double"] == 0.1 and values["negative"] == -7
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(tensors[name].data, array)
    np.testing.assert_array_equal(tensors["q8"].data.reshape(-1), np.arange(136))
    assert tensors["q8"].tensor_type == gguf.GGMLQuantizationType.Q8_0


def test_streaming_in_pieces_and_any_order(tmp_path: Path) -> None:
    raw = np.arange(100, dtype=np.float32)
    with GGUFWriter(tmp_path / "m.gguf", alignment=64) as writer:
        writer.add_tensor("first", (10, 10), TensorType.F32)
        writer.add_tensor("second", (10, 10), TensorType.F32)
        for i in range(0, 100, 30):
            writer.write("second", raw[i : i + 30].tobytes())
            writer.write("first", -raw[i : i + 30])
        assert not (tmp_path / "m.gguf").exists()
    with GGUFFile.open(tmp_path / "m.gguf") as file:
        np.testing.assert_array_equal(file.data("first").view("<f4"), -raw)
        np.testing.assert_array_equal(file.data("second").view("<f4"), raw)
        assert file.tensors["second"].offset % 64 == 0


def test_arrays_that_are_not_contiguous_or_little_endian(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    with GGUFWriter(tmp_path / "m.gguf") as writer:
        writer.add_array("transposed", array.T)
        writer.add_array("swapped", array.astype(">f4"))
    with GGUFFile.open(tmp_path / "m.gguf") as file:
        np.testing.assert_array_equal(file.data("transposed").view("<f4").reshape(6, 4), array.T)
        np.testing.assert_array_equal(file.data("swapped").view("<f4").reshape(4, 6), array)


@pytest.mark.parametrize("version", [1, 3])
def test_metadata_is_copied_with_its_types(tmp_path: Path, version: int) -> None:
    (tmp_path / "a.gguf").write_bytes(small_file(version, big=True).bytes())
    with GGUFFile.open(tmp_path / "a.gguf") as old:
        with GGUFWriter(tmp_path / "b.gguf", "other") as writer:
            writer.copy_metadata(old.metadata, skip=["test.f"])
        with GGUFFile.open(tmp_path / "b.gguf") as new:
            assert set(new.metadata) == set(old.metadata) - {"test.f"}
            assert new.metadata["general.architecture"] == "other"
            for key in set(new.metadata) - {"general.architecture"}:
                assert new.metadata.describe(key) == old.metadata.describe(key)
                assert repr(new.metadata[key]) == repr(old.metadata[key])
            strings = "tokenizer.ggml.tokens"
            assert new.metadata[strings].bytes_list() == old.metadata[strings].bytes_list()


def test_nothing_is_left_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), GGUFWriter(path) as writer:
        writer.add_tensor("t", (4,), TensorType.F32)
        writer.write("t", bytes(8))
        raise RuntimeError("stop")
    with pytest.raises(GGUFError, match="8 of its 16"), GGUFWriter(path) as writer:
        writer.add_tensor("t", (4,), TensorType.F32)
        writer.write("t", bytes(8))
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    with pytest.raises(OutputError, match="cannot be written"), GGUFWriter(tmp_path / "no" / "m.gguf"):
        pass


def test_what_could_not_be_read_back_is_refused(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf")
    writer.add("k", 1)
    for key, value, kind in [
        ("k", 2, None),
        ("", 1, None),
        ("none", None, None),
        ("mixed", [1, "a"], None),
        ("empty", [], None),
        ("map", {"a": 1}, None),
        ("range", 300, ValueType.UINT8),
        ("text", "a", ValueType.UINT32),
        ("huge", 1 << 64, None),
        ("floats", np.float32([1.5]), ValueType.UINT32),
    ]:
        with pytest.raises(GGUFError):
            writer.add(key, value, kind)
    writer.add_tensor("t", (4,), TensorType.F32)
    for name, shape, kind in [
        ("t", (4,), TensorType.F32),
        ("", (4,), TensorType.F32),
        ("a", (), TensorType.F32),
        ("a", (0, 4), TensorType.F32),
        ("a", (1, 1, 1, 1, 1), TensorType.F32),
        ("a", (31,), TensorType.Q4_0),
    ]:
        with pytest.raises(GGUFError):
            writer.add_tensor(name, shape, kind)
    with pytest.raises(GGUFError, match="float32"):
        writer.add_array("a", np.zeros(32, np.float32), TensorType.Q8_0)
    with pytest.raises(GGUFError, match="complex"):
        writer.add_array("a", np.zeros(32, np.complex64))
    with pytest.raises(GGUFError, match="17 bytes"):
        writer.add_array("a", np.zeros((2, 17), np.uint8), TensorType.Q4_0)
    with pytest.raises(GGUFError, match="not declared"):
        writer.write("a", b"")
    with pytest.raises(GGUFError, match="takes 16 bytes"):
        writer.write("t", bytes(17))
    with pytest.raises(GGUFError, match="too late"):
        writer.add("later", 1)
    writer.abort()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(GGUFError, match="alignment"):
        GGUFWriter(tmp_path / "m.gguf", alignment=24)


def test_range_errors_of_python_and_numpy_integers(tmp_path: Path) -> None:
    with GGUFWriter(tmp_path / "m.gguf") as writer:
        writer.add("a", np.int64(-5))
        writer.add("b", [np.uint8(1), np.uint8(2)])
        writer.add("c", [-1, 1 << 40])
    with GGUFFile.open(tmp_path / "m.gguf") as file:
        assert file.metadata.describe("a") == "int64" and file.metadata["a"] == -5
        assert file.metadata.describe("b") == "array of 2 uint8"
        assert file.metadata.describe("c") == "array of 2 int64" and file.metadata["c"].tolist() == [
            -1,
            1 << 40,
        ]
