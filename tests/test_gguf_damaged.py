"""Damaged files: each ends in a GGUFError that names the file, never in anything else."""

import importlib.util
import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf_build import ARRAY, BOOL, STRING, U32, Build, small_file

from pyllamacpu.errors import GGUFError
from pyllamacpu.gguf.reader import GGUFFile

HUGE = (1 << 63, (1 << 64) - 1, 1 << 62, (1 << 63) - 1, 1 << 40)


def refused(path: Path, content: bytes) -> str:
    """Opens the content, which must fail; returns the reason."""
    path.write_bytes(content)
    with pytest.raises(GGUFError) as caught:
        GGUFFile.open(path)
    assert caught.value.path == str(path) and str(path) in str(caught.value) and caught.value.reason
    assert "\n" not in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("big", [False, True])
def test_truncated_at_every_byte(tmp_path: Path, version: int, big: bool) -> None:
    build = small_file(version, big)
    whole = build.bytes()
    end = len(whole) - 32 + 10  # the last tensor has 10 bytes, the rest is padding
    for length in range(end):
        refused(tmp_path / "m.gguf", whole[:length])
    (tmp_path / "m.gguf").write_bytes(whole[:end])
    GGUFFile.open(tmp_path / "m.gguf").close()


def test_not_a_file_of_this_format(tmp_path: Path) -> None:
    whole = small_file().bytes()
    assert "not a GGUF file" in refused(tmp_path / "m", b"")
    assert "not a GGUF file" in refused(tmp_path / "m", b"GGML" + whole[4:])
    for version in (0, 4, 5, 1 << 16, 0xFFFFFFFF):
        assert "version" in refused(tmp_path / "m", b"GGUF" + struct.pack("<I", version) + whole[8:])


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "none", tmp_path / "pipe", "a\0b", tmp_path / ("x" * 5000)):
        with pytest.raises(GGUFError):
            GGUFFile.open(path)


@pytest.mark.parametrize("count", HUGE)
def test_impossible_counts(tmp_path: Path, count: int) -> None:
    path = tmp_path / "m.gguf"
    refused(path, small_file().bytes(n_tensors=count))
    refused(path, small_file().bytes(n_keys=count))


@pytest.mark.parametrize("count", HUGE)
def test_impossible_lengths(tmp_path: Path, count: int) -> None:
    path, size = tmp_path / "m.gguf", struct.pack("<Q", count)
    for kind in range(13):
        build = Build()
        build.add("a", ARRAY, struct.pack("<I", kind) + size + bytes(64))
        refused(path, build.bytes())
    build = Build()
    build.add("s", STRING, size + b"abc")
    refused(path, build.bytes())
    build = Build()
    build.keys.append(size + b"k" + struct.pack("<II", U32, 1))
    refused(path, build.bytes())
    build = Build()
    build.add("s", ARRAY, struct.pack("<IQ", STRING, 2) + build.string(b"ok") + size)
    refused(path, build.bytes())
    build = Build()
    build.infos.append(size + b"t" + struct.pack("<IQIQ", 1, 4, 0, 0))
    refused(path, build.bytes() + bytes(64))


def tensor_file(dims: tuple[int, ...] = (4, 2), kind: int = 0, offset: int = 0, data: int = 64) -> bytes:
    build = Build()
    build.add_tensor("t", dims, kind, bytes(data), offset)
    return build.bytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tensor_file((0,)), "impossible shape"),
        (tensor_file((4, 0)), "impossible shape"),
        (tensor_file((1 << 63,)), "impossible shape"),
        (tensor_file((1 << 32, 1 << 32)), "impossible shape"),
        (tensor_file((1 << 62, 4)), "impossible shape"),
        (tensor_file(((1 << 64) - 1,) * 4), "impossible shape"),
        (tensor_file((1 << 61,)), "truncated"),
        (tensor_file((4, 4, 2)), "truncated"),
        (tensor_file(()), "0 dimensions"),
        (tensor_file((1, 1, 1, 1, 1)), "5 dimensions"),
        (tensor_file(kind=4), "Q4_2"),
        (tensor_file(kind=31), "Q4_0_4_4"),
        (tensor_file(kind=43), "unknown type 43"),
        (tensor_file(kind=(1 << 32) - 1), "unknown type"),
        (tensor_file((31,), kind=8), "multiple of"),
        (tensor_file((288,), kind=12), "multiple of"),
        (tensor_file(offset=4), "alignment"),
        (tensor_file(offset=31), "alignment"),
        (tensor_file(offset=64), "truncated"),
        (tensor_file(offset=1 << 63), "truncated"),
        (tensor_file(offset=(1 << 64) - 32), "truncated"),
    ],
)
def test_wrong_tensors(tmp_path: Path, content: bytes, reason: str) -> None:
    assert reason in refused(tmp_path / "m.gguf", content)
    (tmp_path / "good.gguf").write_bytes(tensor_file())
    GGUFFile.open(tmp_path / "good.gguf").close()


def test_number_of_dimensions_beyond_the_file(tmp_path: Path) -> None:
    build = Build()
    build.infos.append(build.string(b"t") + struct.pack("<I", 0xFFFFFFFF) + bytes(64))
    assert "dimensions" in refused(tmp_path / "m.gguf", build.bytes())


@pytest.mark.parametrize("offset", [0, 32])
def test_overlapping_tensors(tmp_path: Path, offset: int) -> None:
    build = Build()
    build.add_tensor("a", (16,), 0, bytes(64))
    build.add_tensor("b", (16,), 0, bytes(64), offset)
    assert "overlap" in refused(tmp_path / "m.gguf", build.bytes())


def test_names_that_occur_twice_or_are_impossible(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    build = small_file()
    build.add("test.f", U32, bytes(4))
    assert "twice" in refused(path, build.bytes())
    build = small_file()
    build.add_tensor("a", (1,), 0, bytes(4))
    assert "twice" in refused(path, build.bytes())
    for name in (b"", b"\xff\xfe", b"k" * 70000):
        build = Build()
        build.add(name, U32, bytes(4))
        refused(path, build.bytes())
    build = Build()
    build.add_tensor("", (1,), 0, bytes(4))
    refused(path, build.bytes())


@pytest.mark.parametrize("kind", [13, 255, 1 << 31])
def test_unknown_value_types(tmp_path: Path, kind: int) -> None:
    build = Build()
    build.add("k", kind, bytes(32))
    assert "unknown type" in refused(tmp_path / "m.gguf", build.bytes())
    build = Build()
    build.add("k", ARRAY, struct.pack("<IQ", kind, 1) + bytes(32))
    assert "unknown type" in refused(tmp_path / "m.gguf", build.bytes())


def test_booleans_that_are_neither(tmp_path: Path) -> None:
    for payload in (b"\x02", b"\xff"):
        build = Build()
        build.add("k", BOOL, payload)
        assert "boolean" in refused(tmp_path / "m.gguf", build.bytes())
    build = Build()
    build.add("k", ARRAY, struct.pack("<IQ", BOOL, 3) + b"\x01\x00\x07")
    assert "boolean" in refused(tmp_path / "m.gguf", build.bytes())


def nested(depth: int) -> bytes:
    return struct.pack("<IQ", ARRAY, 1) * depth + struct.pack("<IQI", U32, 1, 5)


def test_nested_arrays_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for depth in (4, 5, 1000, 100000):
        build = Build()
        build.add("k", ARRAY, nested(depth))
        assert "nested" in refused(path, build.bytes())
    build = Build()
    build.add("k", ARRAY, nested(3))
    path.write_bytes(build.bytes())
    with GGUFFile.open(path) as file:
        value = file.metadata["k"]
        assert value[0][0][0].tolist() == [5]
    build = Build()
    build.add("k", ARRAY, struct.pack("<IQ", ARRAY, 70000) + struct.pack("<IQ", U32, 0) * 70000)
    assert "inner arrays" in refused(path, build.bytes())


@pytest.mark.parametrize("alignment", [0, 1, 3, 4, 24, 48, 0xFFFFFFFF])
def test_impossible_alignments(tmp_path: Path, alignment: int) -> None:
    build = Build()
    build.add("general.alignment", U32, struct.pack("<I", alignment))
    assert "power of two" in refused(tmp_path / "m.gguf", build.bytes())


def test_alignment_of_another_type(tmp_path: Path) -> None:
    makers: list[Callable[[Build], None]] = [
        lambda build: build.add_string("general.alignment", b"32"),
        lambda build: build.add("general.alignment", 10, struct.pack("<Q", 32)),
        lambda build: build.add("general.alignment", 6, struct.pack("<f", 32)),
    ]
    for make in makers:
        build = Build()
        make(build)
        assert "uint32" in refused(tmp_path / "m.gguf", build.bytes())


def test_a_huge_file_of_nothing_is_refused_at_once(tmp_path: Path) -> None:
    """Counts that could fit in the file, whose 128 GiB are a hole: nothing is walked."""
    path = tmp_path / "m.gguf"
    arrays = Build()
    arrays.add("a", ARRAY, struct.pack("<IQ", STRING, 1 << 33))
    bools = Build()
    bools.add("a", ARRAY, struct.pack("<IQ", BOOL, 1 << 36))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts = Build().bytes(n_keys=1 << 31), Build().bytes(n_tensors=1 << 30)
    for content in (*counts, arrays.bytes(), bools.bytes()):
        path.write_bytes(content)
        os.truncate(path, 1 << 37)
        with pytest.raises(GGUFError):
            GGUFFile.open(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_short_run_of_the_fuzzer(tmp_path: Path) -> None:
    tool = Path(__file__).resolve().parents[1] / "tools" / "fuzz_gguf.py"
    spec = importlib.util.spec_from_file_location("fuzz_gguf", tool)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.fuzz(1000, 7, tmp_path) == 0
