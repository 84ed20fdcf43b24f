"""A pickle machine that runs nothing.

It knows the opcodes that torch's files use (protocols 0 to 5) and builds plain values: None, booleans,
numbers, text, bytes, tuples, lists and dicts with text or whole-number keys. A global is never imported: its
name is looked up in the caller's table of `Global`s, and only a `Global` with a `call` of ours can be called.
Any other global, opcode or kind of object is a CheckpointError that names it. Work and memory are bounded by
the number of opcodes. Source of the opcodes: Python's pickletools.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pyllamacpu.errors import CheckpointError
from pyllamacpu.weights.data_file import DataFile

MAX_OPCODES = 8_000_000  # a checkpoint takes about 50 per tensor
MAX_INTEGER = 16  # bytes
MAX_TEXT = 16 << 20  # bytes of one text or bytes object
_MAX_LINE = 4096  # bytes of a text argument
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Global:
    """What a pickle may name: `call` makes its value from the arguments; without it, it is only a name."""

    module: str
    name: str
    call: Callable[..., Any] | None = None
    meaning: str = ""  # of a name: the element type, for instance

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


Globals = Mapping[tuple[str, str], Global]


class PickleStream:
    """Bytes [start, stop) of a file, taken from the front. Never gives more than there are."""

    def __init__(self, file: DataFile, start: int, stop: int) -> None:
        self.file = file
        self.pos = start  # of the next byte, in the file
        self._stop = stop
        self._block = b""
        self._at = 0  # of the next byte, in the block

    def take(self, length: int) -> bytes:
        if length < 0 or length > self._stop - self.pos:
            raise self.fail(f"{length} bytes are announced, {self._stop - self.pos} are left")
        if self._at + length > len(self._block):
            size = min(max(length, _BLOCK), self._stop - self.pos)
            self._block = self.file.read(self.pos, size).tobytes()
            self._at = 0
        piece = self._block[self._at : self._at + length]
        self._at += length
        self.pos += length
        return piece

    def line(self) -> bytes:
        """The bytes before the next line feed, which is passed."""
        found = bytearray()
        while (byte := self.take(1)) != b"\n":
            found += byte
            if len(found) > _MAX_LINE:
                raise self.fail("a line has no end")
        return bytes(found)

    def fail(self, reason: str) -> CheckpointError:
        return CheckpointError(self.file.path, f"damaged or hostile pickle near byte {self.pos}: {reason}")


class _Mark:
    """Stands in the stack where a MARK opcode was."""


_MARK = _Mark()
_STOP = b"."


class Unpickler:
    """One pickle of a stream. `persistent` turns a persistent id (a storage, in torch's files) into a value.

    After `load()` the stream stands after the pickle.
    """

    def __init__(
        self, stream: PickleStream, known: Globals, persistent: Callable[[Any], Any] | None = None
    ) -> None:
        self._stream = stream
        self._globals = known
        self._persistent = persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The pickled value. Raises CheckpointError."""
        for _ in range(MAX_OPCODES):
            opcode = self._stream.take(1)
            if opcode == _STOP:
                return self._pop()
            action = _ACTIONS.get(opcode)
            if action is None:
                raise self._stream.fail(f"opcode {opcode!r} is refused")
            try:
                action(self)
            except (ValueError, OverflowError, struct.error) as error:  # a number or text that is none
                raise self._stream.fail(f"opcode {opcode!r}: {error}") from error
        raise self._stream.fail(f"it goes on after {MAX_OPCODES} opcodes")

    # the stack

    def _pop(self) -> Any:
        if not self._stack:
            raise self._stream.fail("its stack is empty")
        value = self._stack.pop()
        if value is _MARK:
            raise self._stream.fail("a mark stands where a value should")
        return value

    def _top(self, kind: type) -> Any:
        if not self._stack or type(self._stack[-1]) is not kind:
            raise self._stream.fail(f"items are added to what is no {kind.__name__}")
        return self._stack[-1]

    def _pop_mark(self) -> list[Any]:
        """The values above the topmost mark, which are taken off with it."""
        for at in range(len(self._stack) - 1, -1, -1):
            if self._stack[at] is _MARK:
                values = self._stack[at + 1 :]
                del self._stack[at:]
                return values
        raise self._stream.fail("a mark is missing")

    # numbers and text

    def _unsigned(self, size: int) -> int:
        return int.from_bytes(self._stream.take(size), "little")

    def _sized(self, size: int) -> bytes:
        length = self._unsigned(size)
        if length > MAX_TEXT:
            raise self._stream.fail(f"a text of {length} bytes")
        return self._stream.take(length)

    def _long(self, size: int) -> int:
        length = self._unsigned(size)
        if length > MAX_INTEGER:
            raise self._stream.fail(f"a whole number of {length} bytes")
        return int.from_bytes(self._stream.take(length), "little", signed=True)

    def _text_integer(self) -> int:
        text = self._stream.line().rstrip(b"L")
        if len(text) > 3 * MAX_INTEGER:
            raise self._stream.fail(f"a whole number of {len(text)} digits")
        if text in (b"00", b"01"):
            return text == b"01"
        return int(text)

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    # containers

    def _set_items(self, values: list[Any]) -> None:
        target = self._top(dict)
        if len(values) % 2:
            raise self._stream.fail("a dict has a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (str, int):
                raise self._stream.fail(f"a dict has a key of type {_kind(key)}")
            target[key] = value

    def _new_dict(self) -> None:
        values = self._pop_mark()
        self._push({})
        self._set_items(values)

    def _pair(self) -> list[Any]:
        value = self._pop()
        return [self._pop(), value]

    def _tuple(self, size: int) -> None:
        values = [self._pop() for _ in range(size)]
        self._push(tuple(reversed(values)))

    # the memo

    def _get(self, number: int) -> None:
        if number not in self._memo:
            raise self._stream.fail(f"memo {number} is empty")
        self._push(self._memo[number])

    def _put(self, number: int) -> None:
        value = self._pop()
        self._push(value)
        self._memo[number] = value

    # globals and calls

    def _global(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise self._stream.fail("a global whose name is not a text")
        known = self._globals.get((module, name))
        if known is None:
            shown = f"{module}.{name}"[:120]
            raise CheckpointError(
                self._stream.file.path,
                f"refused: its pickle names {shown!r}, which is not needed for tensors and may run code; "
                "convert the checkpoint to safetensors where you trust it",
            )
        self._push(known)

    def _call(self) -> None:
        arguments, function = self._pop(), self._pop()
        if type(function) is not Global or function.call is None or type(arguments) is not tuple:
            raise self._stream.fail(f"{_kind(function)} cannot be called with {_kind(arguments)}")
        try:
            self._push(function.call(*arguments))
        except TypeError as error:
            raise self._stream.fail(f"{function} has the wrong arguments") from error

    def _build(self) -> None:
        """State for an object: only an ordered dict may have some (torch's `_metadata`); it is not used."""
        state, target = self._pop(), self._pop()
        if type(target) is not dict or type(state) is not dict:
            raise self._stream.fail(f"{_kind(target)} cannot be given a state")
        self._push(target)

    def _persistent_id(self) -> None:
        if self._persistent is None:
            raise self._stream.fail("a persistent id is not expected here")
        self._push(self._persistent(self._pop()))


def _kind(value: object) -> str:
    return str(value) if type(value) is Global else type(value).__name__


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _append(machine: Unpickler) -> None:
    value = machine._pop()
    machine._top(list).append(value)


def _appends(machine: Unpickler) -> None:
    values = machine._pop_mark()
    machine._top(list).extend(values)


def _protocol(machine: Unpickler) -> None:
    if (version := machine._unsigned(1)) > 5:
        raise machine._stream.fail(f"protocol {version} is unknown")


def _stack_global(machine: Unpickler) -> None:
    name, module = machine._pop(), machine._pop()
    machine._global(module, name)


_ACTIONS: dict[bytes, Callable[[Unpickler], Any]] = {
    b"\x80": _protocol,
    b"\x95": lambda m: m._unsigned(8),  # FRAME: a hint only
    b"(": lambda m: m._push(_MARK),
    b"0": lambda m: m._pop(),
    b"1": lambda m: m._pop_mark(),
    b"N": lambda m: m._push(None),
    b"\x88": lambda m: m._push(True),
    b"\x89": lambda m: m._push(False),
    b"I": lambda m: m._push(m._text_integer()),
    b"L": lambda m: m._push(m._text_integer()),
    b"J": lambda m: m._push(struct.unpack("<i", m._stream.take(4))[0]),
    b"K": lambda m: m._push(m._unsigned(1)),
    b"M": lambda m: m._push(m._unsigned(2)),
    b"\x8a": lambda m: m._push(m._long(1)),
    b"\x8b": lambda m: m._push(m._long(4)),
    b"F": lambda m: m._push(float(m._stream.line())),
    b"G": lambda m: m._push(struct.unpack(">d", m._stream.take(8))[0]),
    b"V": lambda m: m._push(m._stream.line().decode("raw-unicode-escape")),
    b"X": lambda m: m._push(_text(m._sized(4))),
    b"\x8c": lambda m: m._push(_text(m._sized(1))),
    b"\x8d": lambda m: m._push(_text(m._sized(8))),
    b"U": lambda m: m._push(m._sized(1).decode("latin-1")),  # Python 2's text
    b"T": lambda m: m._push(m._sized(4).decode("latin-1")),
    b"B": lambda m: m._push(m._sized(4)),
    b"C": lambda m: m._push(m._sized(1)),
    b"\x8e": lambda m: m._push(m._sized(8)),
    b")": lambda m: m._push(()),
    b"t": lambda m: m._push(tuple(m._pop_mark())),
    b"\x85": lambda m: m._tuple(1),
    b"\x86": lambda m: m._tuple(2),
    b"\x87": lambda m: m._tuple(3),
    b"]": lambda m: m._push([]),
    b"l": lambda m: m._push(m._pop_mark()),
    b"a": _append,
    b"e": _appends,
    b"}": lambda m: m._push({}),
    b"d": Unpickler._new_dict,
    b"s": lambda m: m._set_items(m._pair()),
    b"u": lambda m: m._set_items(m._pop_mark()),
    b"g": lambda m: m._get(int(m._stream.line())),
    b"h": lambda m: m._get(m._unsigned(1)),
    b"j": lambda m: m._get(m._unsigned(4)),
    b"p": lambda m: m._put(int(m._stream.line())),
    b"q": lambda m: m._put(m._unsigned(1)),
    b"r": lambda m: m._put(m._unsigned(4)),
    b"\x94": lambda m: m._put(len(m._memo)),
    b"c": lambda m: m._global(_text(m._stream.line()), _text(m._stream.line())),
    b"\x93": _stack_global,
    b"R": Unpickler._call,
    b"\x81": Unpickler._call,  # NEWOBJ
    b"b": Unpickler._build,
    b"Q": Unpickler._persistent_id,
}
