"""Hostile pickles: nothing of them runs, and each ends in a clear error.

Covers convert/formats/torch_pickle.py.
"""

from __future__ import annotations

import os
import pickle
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch_build import (
    BUILD,
    EMPTY_DICT,
    EMPTY_TUPLE,
    MARK,
    NONE,
    PERSID,
    PROTOCOL,
    REDUCE,
    SETITEM,
    STOP,
    TUPLE,
    group,
    name,
    number,
    text,
    write_zip,
)

from pyllamacpu.convert.formats import unpickler
from pyllamacpu.convert.formats.torch_file import read_torch
from pyllamacpu.convert.formats.unpickler import Global, PickleStream, Unpickler
from pyllamacpu.errors import CheckpointError
from pyllamacpu.weights.data_file import DataFile


def load(path: Path, content: bytes, known: dict[tuple[str, str], Global] | None = None) -> Any:
    path.write_bytes(content)
    return Unpickler(PickleStream(DataFile(path), 0, len(content)), known or {}).load()


def refused(tmp_path: Path, pickled: bytes) -> str:
    """The pickle as data.pkl of a torch file, and at the start of one of the older format."""
    for path in (
        write_zip(tmp_path / "zip.pth", pickled, {"0": b"x" * 64}),
        tmp_path / "old.pth",
    ):
        if path.name == "old.pth":
            path.write_bytes(pickled + bytes(100))
            if pickled[:1] != b"\x80":
                continue
        with pytest.raises(CheckpointError) as caught:
            read_torch(path)
        assert str(path) in str(caught.value) and len(str(caught.value)) < 500
        if path.name == "zip.pth":
            reason = caught.value.reason
    return reason


class Bomb:
    """Pickled, it calls a function with arguments."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_calls_of_real_functions(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "owned"
    bombs = [
        Bomb(os.system, f"touch {mark}"),
        Bomb(eval, f"open({str(mark)!r}, 'w')"),
        Bomb(exec, f"open({str(mark)!r}, 'w')"),
        Bomb(open, str(mark), "w"),
        Bomb(subprocess.check_call, ["touch", str(mark)]),
        Bomb(getattr, "x", "upper"),
        Bomb(__import__, "os"),
        Bomb(os.mkdir, str(mark)),
        Bomb(bytearray, 1 << 40),
        Bomb(Path, str(mark)),
    ]
    for bomb in bombs:
        for value in (bomb, {"layer.weight": bomb}, [bomb], ({"x": [bomb]},)):
            reason = refused(tmp_path, pickle.dumps(value, protocol))
            assert "may run code" in reason
    assert not mark.exists()


HOSTILE_NAMES = [
    ("os", "system"),
    ("posix", "system"),
    ("nt", "system"),
    ("builtins", "eval"),
    ("__builtin__", "eval"),
    ("builtins", "getattr"),
    ("builtins", "__import__"),
    ("torch", "load"),
    ("torch", "hub.load"),
    ("torch.serialization", "load"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("torch._utils", "__builtins__"),
    ("collections", "OrderedDict.__init__"),
    ("collections", "namedtuple"),
    ("collections", "_sys"),
    ("pyllamacpu.convert.formats.unpickler", "Unpickler"),
    ("pyllamacpu.native", "lib"),
    ("numpy", "load"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("functools", "partial"),
    ("operator", "attrgetter"),
    ("pickle", "loads"),
    ("importlib", "import_module"),
    ("webbrowser", "open"),
    ("torch.jit", "load"),
    ("torch._tensor", "_rebuild_from_type"),
    ("__torch__", "Model"),
    ("", ""),
    ("torch", ""),
    (" torch", "FloatStorage"),
    ("torch", "floatstorage"),
]


@pytest.mark.parametrize(("module", "attribute"), HOSTILE_NAMES)
def test_names_are_refused_before_any_call(tmp_path: Path, module: str, attribute: str) -> None:
    for spelled in (
        name(module, attribute),
        text(module) + text(attribute) + b"\x93",
    ):
        for use in (b"", EMPTY_TUPLE + REDUCE, group(text("x")) + REDUCE, EMPTY_TUPLE + b"\x81"):
            reason = refused(tmp_path, PROTOCOL + spelled + use + STOP)
            assert "may run code" in reason and f"{module}.{attribute}" in reason


ORDERED = name("collections", "OrderedDict")
REBUILD = name("torch._utils", "_rebuild_tensor_v2")
PARAMETER = name("torch._utils", "_rebuild_parameter")
FROM_TYPE = name("torch._tensor", "_rebuild_from_type_v2")
MACHINES = {
    "instance": MARK + b"ios\nsystem\n",
    "object": MARK + name("collections", "OrderedDict") + b"o",
    "newobj_ex": ORDERED + EMPTY_TUPLE + EMPTY_DICT + b"\x92",
    "extension": b"\x82\x01",
    "extension2": b"\x83\x01\x00",
    "extension4": b"\x84\x01\x00\x00\x00",
    "buffer": b"\x97",
    "bytearray": b"\x96" + struct.pack("<Q", 1 << 40),
    "text persistent id": b"Pos.system\n",
    "call of a storage type": name("torch", "FloatStorage") + EMPTY_TUPLE + REDUCE,
    "call of a dtype": name("torch", "float32") + EMPTY_TUPLE + REDUCE,
    "call of a tensor class": name("torch", "Tensor") + EMPTY_TUPLE + REDUCE,
    "call of text": text("os.system") + group(text("x")) + REDUCE,
    "call of none": NONE + EMPTY_TUPLE + REDUCE,
    "call with a list": ORDERED + b"]" + REDUCE,
    "call with none": ORDERED + NONE + REDUCE,
    "state for a global": ORDERED + EMPTY_DICT + BUILD,
    "state for a function": REBUILD + EMPTY_DICT + text("call") + text("x") + SETITEM + BUILD,
    "state for text": text("x") + EMPTY_DICT + BUILD,
    "state that is no dict": EMPTY_DICT + group(NONE, EMPTY_DICT) + BUILD,
    "items for a global": ORDERED + text("call") + NONE + SETITEM,
    "items for a tuple": EMPTY_TUPLE + NONE + b"a",
    "dict key is a list": EMPTY_DICT + b"]" + NONE + SETITEM,
    "dict key is a tuple": EMPTY_DICT + EMPTY_TUPLE + NONE + SETITEM,
    "dict key is a global": EMPTY_DICT + ORDERED + NONE + SETITEM,
    "rebuild without arguments": REBUILD + EMPTY_TUPLE + REDUCE,
    "rebuild of text": REBUILD + group(*[text("x")] * 6) + REDUCE,
    "parameter of a global": PARAMETER + group(ORDERED, NONE, NONE) + REDUCE,
    "tensor subclass": FROM_TYPE + group(REBUILD, ORDERED, EMPTY_TUPLE, EMPTY_DICT) + REDUCE,
    "type from a name": FROM_TYPE + group(ORDERED, name("torch", "Tensor"), EMPTY_TUPLE, NONE) + REDUCE,
    "encoding": name("_codecs", "encode") + group(text("x"), text("rot13")) + REDUCE,
    "encoding of none": name("_codecs", "encode") + group(NONE) + REDUCE,
    "size of text": name("torch", "Size") + group(text("xyz")) + REDUCE,
    "size": name("torch", "Size") + group(group(number(-1))) + REDUCE,
    "ordered dict of text": ORDERED + group(text("abc")) + REDUCE,
    "ordered dict of odd things": ORDERED + group(group(group(NONE, NONE))) + REDUCE,
    "storage of none": NONE + PERSID,
    "storage of text": text("storage") + PERSID,
    "storage of another thing": group(text("module"), NONE, NONE, NONE, NONE) + PERSID,
    "storage without length": group(text("storage"), name("torch", "FloatStorage"), text("0")) + PERSID,
    "empty stack": b"",
    "pop of nothing": b"0",
    "tuple of nothing": b"\x85",
    "reduce of nothing": REDUCE,
    "mark as a value": MARK,
    "mark missing": TUPLE,
    "odd items": EMPTY_DICT + MARK + NONE + b"u",
    "items without dict": MARK + NONE + NONE + b"u",
    "empty memo": b"h\x05",
    "empty memo by text": b"g5\n",
    "memo of text": b"gxyz\n",
    "number of text": b"Ixyz\n",
    "float of text": b"Fxyz\n",
    "long number": b"L" + b"9" * 4000 + b"L\n",
    "long line": b"L" + b"9" * 100_000 + b"L\n",
    "huge number": b"\x8b" + struct.pack("<I", 0x7FFFFFFF),
    "negative length": b"\x8b" + struct.pack("<i", -1),
    "huge text": b"X" + struct.pack("<I", 0xFFFFFFFF),
    "huge text 8": b"\x8d" + struct.pack("<Q", 1 << 63),
    "huge bytes": b"\x8e" + struct.pack("<Q", 1 << 50),
    "text that is none": b"X" + struct.pack("<I", 2) + b"\xff\xfe",
    "unknown opcode": b"\xff",
    "duplicate": NONE + b"2",
    "set": b"\x8f",
    "protocol": b"\x80\x09",
    "global of numbers": number(1) + number(2) + b"\x93",
}


@pytest.mark.parametrize("case", MACHINES)
def test_broken_machines(tmp_path: Path, case: str) -> None:
    refused(tmp_path, PROTOCOL + MACHINES[case] + STOP)
    refused(tmp_path, PROTOCOL + EMPTY_DICT + text("x") + MACHINES[case] + SETITEM + STOP)


def test_no_end(tmp_path: Path) -> None:
    for body in (b"", NONE, NONE * 1000, b"X\x05", text("x")):
        path = write_zip(tmp_path / "m.pth", PROTOCOL + body, {})
        with pytest.raises(CheckpointError):
            read_torch(path)


LIMITED = """
import sys
from pyllamacpu.convert.formats.torch_file import read_torch
from pyllamacpu.errors import CheckpointError
for path in sys.argv[1:]:
    try:
        read_torch(path)
    except CheckpointError as error:
        print("refused:", error)
"""


def test_depth_and_size_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deep nesting, numbers of the memo and endless work, in a child that may use 600 MB."""
    deep = 300_000
    pair = b"(" + text("x") + NONE + b"t"
    many = b"]" + b"(" + (pair + b"q\x01") + b"h\x01" * 200_000 + b"e" + b"q\x02"
    cases = {
        "tuples": b")" + b"\x85" * deep,
        "lists": b"]" * deep + b"a" * (deep - 1),
        "dicts": (EMPTY_DICT + text("")) * (deep // 8) + NONE + b"s" * (deep // 8),
        "tuple as key": EMPTY_DICT + b")" + b"\x85" * deep + NONE + b"s",
        "memo": NONE + b"r\xff\xff\xff\xff" + b"r\xfe\xff\xff\xff",
        "marks": MARK * deep,
        "repeated arguments": many + (ORDERED + b"h\x02\x85R0") * 3000,
    }
    paths = [
        str(write_zip(tmp_path / f"{case}.pth", PROTOCOL + body + STOP, {})) for case, body in cases.items()
    ]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *paths],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (600 << 20, 600 << 20)),
    )
    assert done.returncode == 0 and done.stdout.count("refused:") == len(cases), done.stderr[-300:]
    monkeypatch.setattr(unpickler, "MAX_OPCODES", 1000)
    with pytest.raises(CheckpointError, match="goes on"):
        load(tmp_path / "long", PROTOCOL + b"N0" * 1000 + STOP)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values(tmp_path: Path, protocol: int) -> None:
    """What is no object comes out as Python's own unpickler has it."""
    values = [
        None,
        True,
        False,
        0,
        255,
        256,
        65536,
        -1,
        1 << 40,
        -(1 << 70),
        1.5,
        float("inf"),
        "",
        "text",
        "ünïcode \n",
        "x" * 300,
        (),
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 3, 4),
        [],
        [1],
        [1, 2, [3]],
        {},
        {"a": 1},
        {"a": 1, "b": {"c": [1, (2,)]}, 3: 4},
        list(range(3000)),
        ["same", "same"],
    ]
    if protocol >= 3:
        values += [b"", b"bytes", b"x" * 300]
    for value in [*values, values]:
        content = pickle.dumps(value, protocol)
        found = load(tmp_path / "p", content)
        assert found == value and type(found) is type(value)


def test_bytes_of_the_older_protocols(tmp_path: Path) -> None:
    known = {("_codecs", "encode"): Global("_codecs", "encode", lambda t, e: t.encode(e))}
    assert load(tmp_path / "p", pickle.dumps(b"\x00\xff", 2), known) == b"\x00\xff"
