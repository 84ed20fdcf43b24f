"""Writing models, for every client of the pipeline: whole or not at all, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections import namedtuple
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from weights_clients import CLIENTS, Client

from pyllamacpu import files
from pyllamacpu.errors import CheckpointError, GGUFError, OptionError, OutputError
from pyllamacpu.gguf import GGUFFile
from pyllamacpu.weights import output, stream
from pyllamacpu.weights.lazy_tensor import from_array
from pyllamacpu.weights.output import ModelOutput, SplitLimits, divide, part_paths
from pyllamacpu.weights.stream import OutputTensor


@pytest.fixture(params=CLIENTS, ids=lambda client: client.name)
def client(request: pytest.FixtureRequest) -> Client:
    return request.param


@pytest.fixture
def source(client: Client, tmp_path: Path) -> Path:
    return client.write_source(tmp_path, None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where outputs go."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def earlier_outputs(plan: ModelOutput) -> dict[str, bytes]:
    """Files that are there already under the names of the outputs."""
    for path in plan.paths:
        path.write_bytes(b"GGUF, of an earlier run")
    return contents(plan.paths[0].parent)


def write(plan: ModelOutput, threads: int = 2) -> list[output.Progress]:
    return list(plan.write(threads))


def test_all_parts_appear_at_the_end(
    client: Client, source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SLAB", 640)
    plan = client.plan(source, folder / "m.gguf", "Q8_0")
    assert len(plan.paths) == 3
    for progress in plan.write(2):
        assert progress.done == plan.n_bytes or not [path for path in plan.paths if path.exists()]
    assert sorted(contents(folder)) == [path.name for path in plan.paths]
    with GGUFFile.open(plan.paths[1]) as file:
        assert {*file.tensors} == {tensor.name for tensor in plan.tensors}
        assert all(file.tensors[tensor.name].type == tensor.kind for tensor in plan.tensors)


def test_slabs_and_threads_change_nothing(
    client: Client, source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(client.plan(source, folder / "m.gguf", "Q8_0"), 1)
    before = contents(folder)
    monkeypatch.setattr(stream, "SLAB", 200)
    write(client.plan(source, folder / "m.gguf", "Q8_0"), 3)
    assert contents(folder) == before


def test_progress_adds_up_and_comes_in_order(
    client: Client, source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SLAB", 64)
    plan = client.plan(source, folder / "m.gguf", "Q8_0")
    events = write(plan)
    assert events[-1].done == events[-1].total == plan.n_bytes
    assert all(a.done < b.done and a.index <= b.index for a, b in pairwise(events))
    assert [event.tensor.name for event in events if event.ended] == [t.name for t in plan.tensors]
    assert [plan.tensors[event.index].name for event in events] == [event.tensor.name for event in events]


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "COPY"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(
    client: Client, tmp_path: Path, folder: Path, kind: str, value: float
) -> None:
    def spoil(matrix: np.ndarray) -> None:
        matrix[7, 3] = value

    plan = client.plan(client.write_source(tmp_path, spoil), folder / "m.gguf", kind)
    before = earlier_outputs(plan)
    with pytest.raises(CheckpointError, match=rf"{client.spoiled}.*row 7, column 3 holds {value}: .*damaged"):
        write(plan)
    assert contents(folder) == before


def test_rows_are_counted_from_the_tensor(
    client: Client, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SLAB", 640)  # ten rows

    def spoil(matrix: np.ndarray) -> None:
        matrix[31, 63] = np.inf

    plan = client.plan(client.write_source(tmp_path, spoil), folder / "m.gguf", "BF16")
    with pytest.raises(CheckpointError, match="row 31, column 63 holds inf"):
        write(plan)


def test_weights_beyond_f16(client: Client, tmp_path: Path, folder: Path) -> None:
    def enlarge(matrix: np.ndarray) -> None:
        matrix[3, 4] = -70000.0

    source = client.write_source(tmp_path, enlarge)
    with pytest.raises(CheckpointError, match=r"row 3, column 4 holds -70000.0: F16 ends at 65504.*BF16"):
        write(client.plan(source, folder / "m.gguf", "F16"))
    assert not contents(folder)
    write(client.plan(source, folder / "m.gguf", "BF16"))


def test_a_disk_without_room_is_seen_before(
    client: Client, source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = client.plan(source, folder / "m.gguf", "Q8_0")
    before = earlier_outputs(plan)
    usage = namedtuple("usage", "total used free")
    free = plan.n_bytes + 100  # enough for the tensors alone
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 1, free))
    with pytest.raises(OutputError, match=r"needs .*B, the disk has .*B left"):
        write(plan)
    assert contents(folder) == before


def test_a_disk_that_fills_up(
    client: Client, source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the last of several parts is brought to the disk: no part has its name by then."""
    plan = client.plan(source, folder / "m.gguf", "Q8_0")
    before = earlier_outputs(plan)
    calls: list[int] = []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == len(plan.paths):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write(plan)
    assert contents(folder) == before


def test_a_name_that_cannot_be_given(
    client: Client, source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last of several parts: the others lose theirs again."""
    replace = os.replace

    def failing(part: Path, target: Path) -> None:
        if Path(target) == plan.paths[-1]:
            raise OSError(errno.EPERM, "Operation not permitted")
        replace(part, target)

    monkeypatch.setattr(files.os, "replace", failing)
    for earlier in (False, True):
        plan = client.plan(source, folder / "m.gguf", "Q8_0")
        before = earlier_outputs(plan) if earlier else {}
        with pytest.raises(OutputError, match="not permitted"):
            write(plan)
        assert contents(folder) == before


def test_closing_early_leaves_nothing(client: Client, source: Path, folder: Path) -> None:
    plan = client.plan(source, folder / "m.gguf", "Q8_0")
    before, threads = earlier_outputs(plan), threading.active_count()
    steps = plan.write(2)
    next(steps)
    assert len(contents(folder)) == len(before) + 1
    steps.close()
    assert contents(folder) == before
    assert threading.active_count() == threads


def test_interruption_leaves_nothing_and_the_plan_can_be_run_again(
    client: Client, source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SLAB", 640)
    plan = client.plan(source, folder / "m.gguf", "Q8_0")
    before, write_slab = earlier_outputs(plan), output.GGUFWriter.write
    written: list[str] = []

    def interrupted(writer: output.GGUFWriter, name: str, data: object) -> None:
        written.append(name)
        if len(written) > len(plan.tensors) // 2:
            raise KeyboardInterrupt
        write_slab(writer, name, data)  # type: ignore[arg-type]

    monkeypatch.setattr(output.GGUFWriter, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(plan)
    assert contents(folder) == before
    monkeypatch.setattr(output.GGUFWriter, "write", write_slab)
    write(plan)
    with GGUFFile.open(plan.paths[0]) as file:
        assert len(file.tensors) == len(plan.tensors)


def test_a_source_that_cannot_be_read(client: Client, source: Path, folder: Path) -> None:
    plan = client.plan(source, folder / "m.gguf", "Q8_0")
    before = earlier_outputs(plan)

    def unreadable(start: int, stop: int) -> np.ndarray:
        raise GGUFError(source, "cannot be read: Input/output error")

    last = plan.parts[-1][-1]
    object.__setattr__(last.tensor, "stored", unreadable)
    object.__setattr__(last.tensor, "flat", None)
    with pytest.raises(GGUFError, match="Input/output error"):
        write(plan)
    assert contents(folder) == before


@pytest.mark.parametrize("kept", [0, 4000])
def test_an_input_that_is_truncated_while_it_is_read(
    client: Client, source: Path, folder: Path, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a mapped one: an error, where touching its pages would be a fatal signal."""
    monkeypatch.setattr(stream, "SLAB", 64)
    plan = client.plan(source, folder / "m.gguf", "F16")
    before = earlier_outputs(plan)
    steps = plan.write(2)
    next(steps)
    for path in plan.inputs.paths:
        os.truncate(path, kept)
    with pytest.raises(CheckpointError, match=r"has changed|ends at byte"):
        list(steps)
    assert contents(folder) == before


def test_an_input_is_never_written_to(client: Client, source: Path, folder: Path) -> None:
    inputs = client.plan(source, folder / "m.gguf", "Q8_0").inputs
    first = inputs.paths[0]
    before = contents(first.parent)
    (folder / "link.gguf").symlink_to(first)
    os.link(first, folder / "hard.gguf")
    for out in (first, folder / "link.gguf", folder / "hard.gguf"):
        plan = ModelOutput([out], [], [[]], inputs)
        with pytest.raises(OutputError, match="is an input too"):
            write(plan)
    assert contents(first.parent) == before


def test_an_input_that_changed_meanwhile(client: Client, source: Path, folder: Path) -> None:
    """At the very end: nothing that was read after the change may be published."""
    plan = client.plan(source, folder / "m.gguf", "Q8_0")
    before = earlier_outputs(plan)
    steps = plan.write(2)
    with pytest.raises(CheckpointError, match="has changed"):
        for progress in steps:
            if progress.done == progress.total:
                with open(plan.inputs.paths[-1], "ab") as file:
                    file.write(b"more")
    assert contents(folder) == before


def tensors_of(*sizes: int) -> list[OutputTensor]:
    zeros = [from_array(np.zeros((1, n), np.float32), "zeros") for n in sizes]
    return [OutputTensor(str(i), tensor, output_kind) for i, tensor in enumerate(zeros)]


output_kind = stream.TensorType.F32


def test_tensors_are_divided() -> None:
    tensors = tensors_of(10, 20, 300, 10, 10)
    assert [len(part) for part in divide(tensors, SplitLimits())] == [5]
    assert [len(part) for part in divide(tensors, SplitLimits(max_tensors=2))] == [2, 2, 1]
    assert [len(part) for part in divide(tensors, SplitLimits(max_bytes=120))] == [2, 1, 2]
    assert divide([], SplitLimits(max_bytes=1)) == [[]]
    with pytest.raises(OptionError, match="65536 parts"):
        divide(tensors[:1] * 65536, SplitLimits(max_tensors=1))


def test_names_of_parts(tmp_path: Path) -> None:
    assert part_paths(tmp_path / "m.gguf", 1) == [tmp_path / "m.gguf"]
    names = [path.name for path in part_paths(tmp_path / "m.gguf", 2)]
    assert names == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    again = part_paths(tmp_path / "m-00001-of-00005.gguf", 2)
    assert [path.name for path in again] == names
    assert part_paths(tmp_path / "m", 1, always_numbered=True)[0].name == "m-00001-of-00001.gguf"


def test_one_file_under_the_name_of_a_part(client: Client, source: Path, folder: Path) -> None:
    """Is written where it was asked for, with a note, and can be read."""
    plan = client.plan(source, folder / "m-00002-of-00006.gguf", "Q8_0")
    assert not plan.notes
    one = ModelOutput([folder / "m-00002-of-00006.gguf"], plan.metadata, [plan.tensors], plan.inputs)
    assert one.notes == ["m-00002-of-00006.gguf is named as part 2 of 6, and will be the whole in one file"]
    write(one)
    with GGUFFile.open(one.paths[0]) as file:
        assert {*file.tensors} == {tensor.name for tensor in plan.tensors}
    for name in ("m.gguf", "m-00001-of-00001.gguf"):
        assert not ModelOutput([folder / name], plan.metadata, [plan.tensors], plan.inputs).notes
