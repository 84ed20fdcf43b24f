"""GGUF files as they are read: every version and byte order, metadata, tensors, split files.

Covers gguf/metadata.py, gguf/source.py.
"""

import os
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_build import STRING, Build, small_file

from pyllamacpu.errors import GGUFError
from pyllamacpu.gguf.byteswap import swap_tensor
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.gguf.values import ValueType


def saved(path: Path, build: Build) -> Path:
    path.write_bytes(build.bytes())
    return path


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("big", [False, True])
def test_every_version_and_byte_order(tmp_path: Path, version: int, big: bool) -> None:
    with GGUFFile.open(saved(tmp_path / "m.gguf", small_file(version, big))) as file:
        assert (file.version, file.byteorder) == (version, "big" if big else "little")
        values = file.metadata
        assert values["general.architecture"] == "llama"
        assert [values[f"test.{c}"] for c in "BbHhIiQq"] == [7, -7] * 4
        assert values["test.f"] == 1.5 and values["test.d"] == 1e300 and values["test.bool"] is True
        tokens = values["tokenizer.ggml.tokens"]
        assert tokens.bytes_list() == [b"<s>", b"", b"\xff\xfe", "€".encode(), b"a\nb\x00"]
        np.testing.assert_array_equal(values["tokenizer.ggml.scores"], np.float32([0, -1, 2.5]))
        np.testing.assert_array_equal(values["tokenizer.ggml.token_type"], [1, 3, -6])
        assert [inner.tolist() for inner in values["test.nested"]] == [[0, 0], [1, -1], [2, -2]]
        info = file.tensors["a"]
        assert (info.shape, info.type, info.n_elements, info.n_bytes) == ((3, 4), TensorType.F32, 12, 48)
        np.testing.assert_array_equal(file.data("a").view("<f4"), np.arange(12))
        blocks = file.data("b").reshape(2, 34)
        np.testing.assert_array_equal(blocks[:, :2].copy().view("<f2")[:, 0], [0.5, 1.5])
        np.testing.assert_array_equal(blocks[:, 2:], np.tile(np.arange(32), (2, 1)))
        np.testing.assert_array_equal(file.data("c").view("<f2"), np.arange(5))


def test_types_and_raw_bytes_of_values(tmp_path: Path) -> None:
    build = small_file()
    build.add_string("bad", b"a\xff")
    with GGUFFile.open(saved(tmp_path / "m.gguf", build)) as file:
        assert file.metadata["bad"] == "a\N{REPLACEMENT CHARACTER}" and file.metadata.raw("bad") == b"a\xff"
        assert file.metadata.value_type("test.B") == ValueType.UINT8
        assert file.metadata.element_type("tokenizer.ggml.scores") == ValueType.FLOAT32
        assert file.metadata.describe("tokenizer.ggml.tokens") == "array of 5 string"
        with pytest.raises(KeyError):
            file.metadata.raw("test.B")
        with pytest.raises(KeyError):
            file.metadata["missing"]


def test_samples_of_tensors_leave_nothing_in_memory(tmp_path: Path) -> None:
    names = [f"t{i}" for i in range(64)]
    build = Build()
    for i, name in enumerate(names):
        build.add_tensor(name, (256, 64), int(TensorType.F32), np.full(256 * 64, i, "<f4").tobytes())
    with GGUFFile.open(saved(tmp_path / "m.gguf", build)) as file:
        mapped = mapped_bytes()
        for i, name in enumerate(names):
            assert file.sample(name, 8) == np.full(4, i, "<f4").tobytes()
        assert mapped_bytes() < mapped + file.n_bytes // 4
    with GGUFFile.open(saved(tmp_path / "m.gguf", small_file())) as file:
        whole = file.data("c").tobytes()
        assert file.sample("c") == whole + whole[len(whole) // 2 :]
        with pytest.raises(GGUFError, match="no tensor"):
            file.sample("d")


def mapped_bytes() -> int:
    """Of files, that are in this process's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssFile"))


def test_data_is_a_read_only_view_that_outlives_the_file(tmp_path: Path) -> None:
    file = GGUFFile.open(saved(tmp_path / "m.gguf", small_file()))
    view = file.data("a")
    assert not view.flags.writeable and not view.flags.owndata
    file.release("a", 5, 9)
    file.release("b")
    file.release_all()
    file.close()
    file.close()
    np.testing.assert_array_equal(view.view("<f4"), np.arange(12))
    with pytest.raises(GGUFError, match="closed"):
        file.data("a")
    with pytest.raises(GGUFError, match="closed"):
        file.metadata["tokenizer.ggml.scores"]


def test_unknown_tensor(tmp_path: Path) -> None:
    with (
        GGUFFile.open(saved(tmp_path / "m.gguf", small_file())) as file,
        pytest.raises(GGUFError, match="'zz'"),
    ):
        file.data("zz")


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_other_alignments(tmp_path: Path, alignment: int) -> None:
    build = Build(alignment=alignment)
    build.add("general.alignment", 4, build.pack("I", alignment))
    for i in range(3):
        build.add_tensor(f"t{i}", (3,), 0, build.pack("3f", i, i, i))
    with GGUFFile.open(saved(tmp_path / "m.gguf", build)) as file:
        for i in range(3):
            assert file.tensors[f"t{i}"].offset % alignment == 0
            np.testing.assert_array_equal(file.data(f"t{i}").view("<f4"), [i] * 3)


def written_by_package(path: Path, big: bool = False, **options: Any) -> dict[str, np.ndarray]:
    """A file made by the gguf package; returns its float32 tensors."""
    order = gguf.GGUFEndian.BIG if big else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(path, "llama", endianess=order, **options)
    writer.add_name("tést")
    writer.add_block_count(2)
    writer.add_rope_freq_base(500000.0)
    writer.add_token_list(["a", "b€", "Ġc"])
    writer.add_token_scores([0.0, -1.0, -2.5])
    writer.add_token_types([1, 2, 3])
    writer.add_add_bos_token(True)
    writer.add_uint64("test.u64", 1 << 40)
    rng = np.random.default_rng(1)
    tensors = {f"t{i}": rng.standard_normal((i + 1, 32), dtype=np.float32) for i in range(5)}
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def check_package_file(file: GGUFFile, tensors: dict[str, np.ndarray]) -> None:
    assert file.metadata["general.name"] == "tést" and file.metadata["llama.block_count"] == 2
    assert file.metadata["llama.rope.freq_base"] == 500000.0 and file.metadata["test.u64"] == 1 << 40
    assert list(file.metadata["tokenizer.ggml.tokens"]) == ["a", "b€", "Ġc"]
    assert file.metadata["tokenizer.ggml.scores"].tolist() == [0.0, -1.0, -2.5]
    assert file.metadata["tokenizer.ggml.add_bos_token"] is True
    assert set(file.tensors) == set(tensors)
    for name, array in tensors.items():
        assert file.tensors[name].shape == array.shape
        np.testing.assert_array_equal(file.data(name).view("<f4").reshape(array.shape), array)


@pytest.mark.parametrize("big", [False, True])
def test_files_of_the_gguf_package(tmp_path: Path, big: bool) -> None:
    tensors = written_by_package(tmp_path / "m.gguf", big)
    with GGUFFile.open(tmp_path / "m.gguf") as file:
        check_package_file(file, tensors)


def test_split_files_of_the_gguf_package_from_any_part(tmp_path: Path) -> None:
    tensors = written_by_package(tmp_path / "m.gguf", split_max_tensors=2)
    parts = sorted(tmp_path.iterdir())
    assert len(parts) == 3
    for part in parts:
        with GGUFFile.open(part) as file:
            check_package_file(file, tensors)
            assert file.paths == tuple(parts)
            assert [file.tensors[f"t{i}"].part for i in range(5)] == [0, 0, 1, 1, 2]
            assert file.n_bytes == sum(part.stat().st_size for part in parts)


def split_part(
    number: int, count: int = 2, total: int = 2, name: str | None = None, big: bool = False
) -> Build:
    build = Build(big=big)
    build.add("split.no", 2, build.pack("H", number))
    build.add("split.count", 2, build.pack("H", count))
    build.add("split.tensors.count", 5, build.pack("i", total))
    build.add_tensor(name or f"t{number}", (2,), 0, build.pack("2f", 1, 2))
    return build


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (None, "missing"),
        (split_part(0), "part 2 of 2"),
        (split_part(1, count=3), "part 2 of 2"),
        (split_part(1, name="t0"), "also in part 1"),
        (split_part(1, big=True), "byte order"),
        (Build(), "part 2 of 2"),
    ],
)
def test_wrong_second_part(tmp_path: Path, second: Build | None, reason: str) -> None:
    first = saved(tmp_path / "m-00001-of-00002.gguf", split_part(0))
    if second is not None:
        saved(tmp_path / "m-00002-of-00002.gguf", second)
    with pytest.raises(GGUFError, match=reason):
        GGUFFile.open(first)


def test_wrong_split_totals_and_names(tmp_path: Path) -> None:
    saved(tmp_path / "m-00001-of-00002.gguf", split_part(0, total=9))
    saved(tmp_path / "m-00002-of-00002.gguf", split_part(1, total=9))
    with pytest.raises(GGUFError, match="says 9"):
        GGUFFile.open(tmp_path / "m-00001-of-00002.gguf")
    with pytest.raises(GGUFError, match="must be named"):
        GGUFFile.open(saved(tmp_path / "renamed.gguf", split_part(0)))
    with pytest.raises(GGUFError, match="must be named"):
        GGUFFile.open(saved(tmp_path / "m-00001-of-00003.gguf", split_part(0)))
    build = small_file()
    build.add("split.count", 2, build.pack("H", 1))
    with pytest.raises(GGUFError, match=r"split\.count is 1"):
        GGUFFile.open(saved(tmp_path / "x-00001-of-00002.gguf", build))
    with GGUFFile.open(saved(tmp_path / "y-00001-of-00002.gguf", small_file())) as file:
        assert len(file.paths) == 1  # a whole model under such a name
    build = small_file()
    build.add("split.count", STRING, build.string(b"2"))
    with pytest.raises(GGUFError, match="whole number"):
        GGUFFile.open(saved(tmp_path / "m.gguf", build))


# The fields of a block; a big-endian machine stores each with its bytes reversed.
FIELDS = {
    "F32": "f", "F16": "e", "BF16": "H", "F64": "d", "I8": "b", "I16": "h", "I32": "i", "I64": "q",
    "Q4_0": "e16B", "Q4_1": "ee16B", "Q5_0": "eI16B", "Q5_1": "eeI16B", "Q8_0": "e32b", "Q8_1": "ee32b",
    "Q2_K": "16B64Bee", "Q3_K": "32B64B12Be", "Q4_K": "ee12B128B", "Q5_K": "ee12B32B128B",
    "Q6_K": "128B64B16be", "Q8_K": "f256b16h", "IQ1_S": "e32B8H", "IQ1_M": "32B16B4H", "IQ2_XXS": "e16I",
    "IQ2_XS": "e32H8B", "IQ2_S": "e64B8B8B", "IQ3_XXS": "e64B8I", "IQ3_S": "e64B8B32B4B", "IQ4_NL": "e16B",
    "IQ4_XS": "eH4B128B", "TQ1_0": "48B4Be", "TQ2_0": "64Be", "MXFP4": "B16B", "NVFP4": "4B32B",
    "Q1_0": "e16B", "Q2_0": "e16B",
}  # fmt: skip


@pytest.mark.parametrize("kind", list(TensorType))
def test_big_endian_blocks(tmp_path: Path, kind: TensorType) -> None:
    format = FIELDS[kind.name]
    assert struct.calcsize("<" + format) == kind.block_bytes
    words = format.replace("e", "H").replace("f", "I").replace("d", "Q")  # keep every bit, NaNs too
    little = np.random.default_rng(kind).integers(0, 256, 6 * kind.block_bytes, np.uint8)
    big = b"".join(
        struct.pack(">" + words, *struct.unpack("<" + words, block.tobytes()))
        for block in little.reshape(6, -1)
    )
    np.testing.assert_array_equal(swap_tensor(np.frombuffer(big, np.uint8), kind), little)
    build = Build(big=True)
    build.add_tensor("t", (2 * kind.block_size, 3), kind, big)
    with GGUFFile.open(saved(tmp_path / "m.gguf", build)) as file:
        np.testing.assert_array_equal(file.data("t"), little)
        assert not file.data("t").flags.writeable


def test_opening_keeps_no_file_open(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.gguf", small_file())
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(20):
        with GGUFFile.open(path) as file:
            assert file.metadata["test.f"] == 1.5
        bad = tmp_path / "bad.gguf"
        bad.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(GGUFError):
            GGUFFile.open(bad)
    after = len(os.listdir("/proc/self/fd")) if before else 0
    assert after <= before + 1
