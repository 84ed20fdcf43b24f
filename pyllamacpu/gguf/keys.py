"""One metadata value on its way into a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from pyllamacpu.gguf.metadata import Metadata
from pyllamacpu.gguf.values import ValueType


class KeyValue(NamedTuple):
    """One metadata value; `kind` is the type of a number or of an array's elements, None: the writer's
    choice.
    """

    name: str
    value: Any
    kind: ValueType | None = None


def metadata_keys(metadata: Metadata) -> Iterator[KeyValue]:
    """All metadata of a file with its types; strings as the bytes that the file has."""
    for name in metadata:
        kind = metadata.value_type(name)
        if kind == ValueType.STRING:
            yield KeyValue(name, metadata.raw(name))
        elif kind == ValueType.ARRAY:
            yield KeyValue(name, metadata[name], metadata.element_type(name))
        else:
            yield KeyValue(name, metadata[name], kind)
