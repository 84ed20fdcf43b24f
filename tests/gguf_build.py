"""GGUF files made byte by byte, so that each field can be wrong: for the tests and for tools/fuzz_gguf.py."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


@dataclass
class Build:
    """Packs the pieces of a file of one version and byte order. Values are (type, bytes) pairs."""

    version: int = 3
    big: bool = False
    alignment: int = 32
    keys: list[bytes] = field(default_factory=list)
    infos: list[bytes] = field(default_factory=list)
    data: bytes = b""

    @property
    def order(self) -> str:
        return ">" if self.big else "<"

    def pack(self, format: str, *values: object) -> bytes:
        return struct.pack(self.order + format, *values)

    def size(self, n: int) -> bytes:
        """A count or a length: 4 bytes in version 1."""
        return self.pack("I" if self.version == 1 else "Q", n)

    def string(self, raw: bytes) -> bytes:
        return self.size(len(raw)) + raw

    def add(self, key: str | bytes, kind: int, payload: bytes) -> None:
        raw = key.encode() if isinstance(key, str) else key
        self.keys.append(self.string(raw) + self.pack("I", kind) + payload)

    def add_string(self, key: str, text: bytes) -> None:
        self.add(key, STRING, self.string(text))

    def add_strings(self, key: str, texts: list[bytes]) -> None:
        payload = self.pack("I", STRING) + self.size(len(texts)) + b"".join(map(self.string, texts))
        self.add(key, ARRAY, payload)

    def add_numbers(self, key: str, kind: int, format: str, values: list[float]) -> None:
        payload = self.pack("I", kind) + self.size(len(values)) + self.pack(f"{len(values)}{format}", *values)
        self.add(key, ARRAY, payload)

    def add_tensor(
        self, name: str, dims: tuple[int, ...], kind: int, raw: bytes, offset: int | None = None
    ) -> None:
        """A tensor with dims in GGUF's order and its bytes; `offset` only to lie about its place."""
        place = len(self.data) if offset is None else offset
        info = self.string(name.encode()) + self.pack("I", len(dims)) + b"".join(map(self.size, dims))
        self.infos.append(info + self.pack("IQ", kind, place))
        self.data += raw + bytes(-len(raw) % self.alignment)

    def bytes(self, n_tensors: int | None = None, n_keys: int | None = None) -> bytes:
        counts = (
            (n_tensors if n_tensors is not None else len(self.infos)),
            (n_keys if n_keys is not None else len(self.keys)),
        )
        head = b"GGUF" + self.pack("I", self.version) + b"".join(map(self.size, counts))
        head += b"".join(self.keys) + b"".join(self.infos)
        return head + bytes(-len(head) % self.alignment) + self.data


def small_file(version: int = 3, big: bool = False) -> Build:
    """A file with every kind of value and three tensors."""
    build = Build(version, big)
    build.add_string("general.architecture", b"llama")
    scalars = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", U64: "Q", I64: "q"}
    for kind, format in scalars.items():
        build.add(f"test.{format}", kind, build.pack(format, -7 if format.islower() else 7))
    build.add("test.f", F32, build.pack("f", 1.5))
    build.add("test.d", F64, build.pack("d", 1e300))
    build.add("test.bool", BOOL, b"\x01")
    build.add_strings("tokenizer.ggml.tokens", [b"<s>", b"", b"\xff\xfe", "€".encode(), b"a\nb\x00"])
    build.add_numbers("tokenizer.ggml.scores", F32, "f", [0.0, -1.0, 2.5])
    build.add_numbers("tokenizer.ggml.token_type", I32, "i", [1, 3, -6])
    inner = [build.pack("I", I32) + build.size(2) + build.pack("2i", i, -i) for i in range(3)]
    build.add("test.nested", ARRAY, build.pack("I", ARRAY) + build.size(3) + b"".join(inner))
    build.add_tensor("a", (4, 3), 0, build.pack("12f", *range(12)))
    build.add_tensor("b", (32, 2), 8, b"".join(build.pack("e32b", 0.5 + i, *range(32)) for i in range(2)))
    build.add_tensor("c", (5,), 1, build.pack("5e", *range(5)))
    return build
