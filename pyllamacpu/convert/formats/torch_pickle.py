"""What a torch file may build: tensors over storages, in dicts.

Tensors come as `TensorSpec`s, descriptions that `torch_file` places in the file. Source: torch's _utils.py
and serialization.py (the functions named in the table below and their arguments).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pyllamacpu.convert.formats.unpickler import Global
from pyllamacpu.errors import CheckpointError
from pyllamacpu.weights.lazy_tensor import STORED

MAX_DIMS = 64
MAX_WORK = 4_000_000  # items of all arguments: a list may be an argument many times
_LARGEST = 1 << 62


@dataclass
class Storage:
    """Elements that lie together in the file. `n_bytes` is checked by whoever places it; `offset` is None
    until then. `dtype` is empty for one without an element type.
    """

    key: str
    dtype: str
    n_bytes: int
    offset: int | None = None


@dataclass(frozen=True)
class TensorSpec:
    """A strided view of a storage, checked to lie within it; lengths and strides in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "UntypedStorage": "",
}
DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
_PLAIN_TENSORS = (("torch", "Tensor"), ("torch.nn.parameter", "Parameter"))


class TorchGlobals:
    """The table of globals for one file; what they build is checked, and refused with the file's name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._work = 0  # items that arguments have had so far
        calls: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): self._ordered_dict,
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor_v2,
            ("torch._utils", "_rebuild_tensor_v3"): self._tensor_v3,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): self._parameter,
            ("torch._tensor", "_rebuild_from_type_v2"): self._from_type,
            ("torch", "Size"): self._size,
            ("torch", "device"): self._device,
            ("_codecs", "encode"): self._encode,
        }
        self.table = {key: Global(*key, call) for key, call in calls.items()}
        names = {
            (module, name): kind for module in ("torch", "torch.cuda") for name, kind in STORAGES.items()
        }
        names |= {("torch.storage", "UntypedStorage"): ""}
        names |= {("torch", name): kind for name, kind in DTYPES.items()}
        names |= dict.fromkeys(_PLAIN_TENSORS, "")
        self.table |= {key: Global(*key, None, kind) for key, kind in names.items()}

    def fail(self, reason: str) -> CheckpointError:
        return CheckpointError(self.path, f"damaged or hostile pickle: {reason}")

    def storage(self, saved_id: Any) -> Storage:
        """The storage of a persistent id ("storage", type, key, location, elements), not yet placed."""
        if type(saved_id) is not tuple or len(saved_id) not in (5, 6) or saved_id[0] != "storage":
            raise self.fail("a persistent id that is not a storage")
        kind, key, n_elements = saved_id[1], saved_id[2], saved_id[4]
        if type(kind) is not Global or kind.name not in STORAGES or type(key) is not str:
            raise self.fail("a storage without type or key")
        if type(n_elements) is not int or not 0 <= n_elements < _LARGEST:
            raise self.fail(f"storage {key[:40]!r} has an impossible length")
        itemsize = STORED[kind.meaning].itemsize if kind.meaning else 1
        return Storage(key, kind.meaning, n_elements * itemsize)

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> TensorSpec:
        return self._spec(storage, storage.dtype if type(storage) is Storage else "", offset, shape, strides)

    def _tensor_v2(
        self,
        storage: Any,
        offset: Any,
        shape: Any,
        strides: Any,
        _grad: Any,
        _hooks: Any,
        metadata: Any = None,
    ) -> TensorSpec:
        if metadata:
            raise self.fail("a tensor with metadata (conjugate or negative view)")
        return self._tensor(storage, offset, shape, strides)

    def _tensor_v3(
        self,
        storage: Any,
        offset: Any,
        shape: Any,
        strides: Any,
        _grad: Any,
        _hooks: Any,
        dtype: Any,
        metadata: Any = None,
    ) -> TensorSpec:
        if metadata:
            raise self.fail("a tensor with metadata (conjugate or negative view)")
        if type(dtype) is not Global or dtype.name not in DTYPES:
            raise self.fail("a tensor without an element type")
        return self._spec(storage, dtype.meaning, offset, shape, strides)

    def _spec(self, storage: Any, dtype: str, offset: Any, shape: Any, strides: Any) -> TensorSpec:
        if type(storage) is not Storage or dtype not in STORED:
            raise self.fail("a tensor without a typed storage")
        if not self._are_counts([offset]) or not self._are_counts(shape) or not self._are_counts(strides):
            raise self.fail("a tensor with an impossible shape")
        if len(shape) != len(strides):
            raise self.fail(f"a tensor of {len(shape)} dimensions with {len(strides)} strides")
        available = storage.n_bytes // STORED[dtype].itemsize
        n_elements = prod(shape)
        end = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1
        if n_elements and (end > available or n_elements > available):
            raise self.fail(
                f"a tensor of shape {tuple(shape)} does not fit storage {storage.key[:40]!r} "
                f"of {available} elements"
            )
        return TensorSpec(storage, dtype, offset, tuple(shape), tuple(strides))

    def _charge(self, n_items: int) -> None:
        self._work += n_items
        if self._work > MAX_WORK:
            raise self.fail("too much work")

    @staticmethod
    def _are_counts(values: Any) -> bool:
        if type(values) not in (tuple, list) or len(values) > MAX_DIMS:
            return False
        return all(type(n) is int and 0 <= n < _LARGEST for n in values)

    def _parameter(self, data: Any, _grad: Any, _hooks: Any, _state: Any = None) -> TensorSpec:
        if type(data) is not TensorSpec:
            raise self.fail("a parameter that is not a tensor")
        return data

    def _from_type(self, function: Any, kind: Any, arguments: Any, _state: Any) -> Any:
        """A tensor with attributes of its own, which are not used; subclasses of Tensor are refused."""
        if type(kind) is not Global or (kind.module, kind.name) not in _PLAIN_TENSORS:
            raise self.fail(f"a tensor of the special class {kind if type(kind) is Global else '?'}")
        known = (self._tensor_v2, self._tensor_v3, self._parameter)
        if type(function) is not Global or function.call not in known or type(arguments) is not tuple:
            raise self.fail("a tensor that is rebuilt by an unknown function")
        return function.call(*arguments)

    def _ordered_dict(self, items: Any = ()) -> dict[Any, Any]:
        if type(items) not in (list, tuple):
            raise self.fail("an ordered dict made of no list")
        self._charge(len(items))
        found = {}
        for item in items:
            if type(item) not in (list, tuple) or len(item) != 2 or type(item[0]) not in (str, int):
                raise self.fail("an ordered dict with a strange key")
            found[item[0]] = item[1]
        return found

    def _size(self, lengths: Any = ()) -> tuple[int, ...]:
        if not self._are_counts(lengths):
            raise self.fail("an impossible torch.Size")
        return tuple(lengths)

    def _device(self, *names: Any) -> str:
        return ":".join(str(name)[:40] for name in names[:2] if type(name) in (str, int))

    def _encode(self, text: Any, encoding: Any = "latin1") -> bytes:
        """Bytes, as protocol 2 writes them."""
        if type(text) is not str or encoding not in ("latin1", "latin-1"):
            raise self.fail("bytes in an unknown encoding")
        self._charge(len(text))
        return text.encode("latin-1")
