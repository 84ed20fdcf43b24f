"""`pyllamacpu show`: what is in a model file, and the memory it will need."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pyllamacpu.cli.loading_options import expert_memory_option, override_option
from pyllamacpu.cli.options import CACHE_TYPES
from pyllamacpu.cli.tables import print_table
from pyllamacpu.errors import ModelError
from pyllamacpu.progress import visible
from pyllamacpu.units import binary_bytes, decimal_bytes

if TYPE_CHECKING:
    from pyllamacpu.gguf.overrides import Overrides
    from pyllamacpu.gguf.reader import GGUFFile

_SHOWN_ITEMS = 8  # of a long array
_SHOWN_CHARACTERS = 200  # of a long string

EPILOG = """\b
Examples:
  pyllamacpu show model.gguf
  pyllamacpu show model.gguf --memory --type-k q8_0 --type-v q8_0
  pyllamacpu show model.gguf --plan
  pyllamacpu show model.gguf --template
  pyllamacpu show model.gguf --json | jq .types
"""


_SECTIONS = ("metadata", "tensors", "memory", "plan", "template")
_WHOLE = ("plan", "template")  # that are printed as they are, so without anything else


def _kv_type(*names: str, what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    known = click.Choice(CACHE_TYPES, False)
    return click.option(*names, type=known, default="f16", show_default=True, help=f"Type of cached {what}.")


class MemoryOptions(NamedTuple):
    """What the memory that a model needs depends on, beside its context."""

    type_k: str
    type_v: str
    expert_memory: int | None


@click.command(epilog=EPILOG)
@click.argument("model", required=False)
@click.option("--metadata", is_flag=True, help="Only the metadata.")
@click.option("--tensors", is_flag=True, help="Only the tensors.")
@click.option("--memory", is_flag=True, help="Only the memory needed per context length.")
@click.option("--plan", is_flag=True, help="Only the ops that a step runs, one by one.")
@click.option("--template", is_flag=True, help="Only the chat template, as it is.")
@click.option("--json", "as_json", is_flag=True, help="That, or everything, as one JSON object.")
@click.option("--full", is_flag=True, help="Long arrays and strings in full.")
@_kv_type("-ctk", "--type-k", "--cache-type-k", what="keys")
@_kv_type("-ctv", "--type-v", "--cache-type-v", what="values")
@expert_memory_option
@override_option
def show(
    model: str | None,
    as_json: bool,
    full: bool,
    type_k: str,
    type_v: str,
    expert_memory: int | None,
    kv_overrides: Overrides | None,
    **given: bool,
) -> None:
    """Show what is in MODEL: metadata, tensors, types, sizes, and the memory it needs.

    MODEL is a file, a name from `pyllamacpu list` or hf.co/user/repo; the starter model if none is given.
    """
    from pyllamacpu.gguf.reader import GGUFFile
    from pyllamacpu.store.resolve import resolve_model

    sections = [name for name in _SECTIONS if given[name]]
    if not as_json and len(sections) > 1 and (whole := [name for name in _WHOLE if given[name]]):
        raise click.UsageError(f"--{whole[0]} is printed as it is: give it alone, or --json")
    stated = MemoryOptions(type_k, type_v, expert_memory)
    with GGUFFile.open(resolve_model(model), kv_overrides) as file:
        if as_json:
            found = _sections(file, sections, full, stated) if sections else _everything(file, full, stated)
            click.echo(json.dumps(found, indent=2))
        elif "template" in sections:
            click.echo(visible(_template(file), sys.stdout))
        elif "plan" in sections:
            click.echo(_plan(file))
        else:
            _print_sections(file, sections, full, stated)


def _template(file: GGUFFile) -> str:
    template = file.metadata.get("tokenizer.chat_template")
    if not isinstance(template, str):
        raise ModelError(f"{file.paths[0]} has no chat template; `chat` takes one by name (--chat-template)")
    return template


def _plan(file: GGUFFile) -> str:
    from pyllamacpu.engine.engine import described_plan
    from pyllamacpu.model.config import ModelConfig

    text = str(described_plan(file, ModelConfig.from_metadata(file.metadata, file.tensors)))
    return "\n".join(map(_printable, text.splitlines()))


def _packed(file: GGUFFile) -> list[dict[str, Any]]:
    """The files of its packed weights, as `pyllamacpu panels` lists them."""
    from pyllamacpu.model.kept_panels import kept_of
    from pyllamacpu.store.paths import usual_pack_folder

    return [
        {"path": str(kept.path), "bytes": kept.n_bytes, "tier": kept.tier, "state": kept.state()}
        for kept in kept_of(usual_pack_folder().path, file.paths[0])
    ]


def _packed_text(file: GGUFFile) -> str:
    found = [f"{decimal_bytes(kept['bytes'])} ({kept['tier']}, {kept['state']})" for kept in _packed(file)]
    return ", ".join(found) or "not kept (--pack-cache)"


def _facts(file: GGUFFile) -> dict[str, Any]:
    n_elements = sum(info.n_elements for info in file.tensors.values())
    n_bytes = sum(info.n_bytes for info in file.tensors.values())
    return {
        "path": str(file.paths[0]),
        "parts": len(file.paths),
        "bytes": file.n_bytes,
        "version": file.version,
        "byte_order": file.byteorder,
        "metadata_keys": len(file.metadata),
        "tensors": len(file.tensors),
        "parameters": n_elements,
        "tensor_bytes": n_bytes,
        "bits_per_weight": round(8 * n_bytes / n_elements, 3) if n_elements else 0.0,
    }


def _types(file: GGUFFile) -> list[dict[str, Any]]:
    """Totals per tensor type, the largest first."""
    totals: dict[str, dict[str, Any]] = {}
    for info in file.tensors.values():
        row = totals.setdefault(
            info.type.name, {"type": info.type.name, "tensors": 0, "parameters": 0, "bytes": 0}
        )
        row["tensors"] += 1
        row["parameters"] += info.n_elements
        row["bytes"] += info.n_bytes
    return sorted(totals.values(), key=lambda row: -int(row["bytes"]))


def _tensors(file: GGUFFile) -> list[dict[str, Any]]:
    return [
        {"name": info.name, "type": info.type.name, "shape": list(info.shape), "bytes": info.n_bytes}
        for info in file.tensors.values()
    ]


def _memory(file: GGUFFile, stated: MemoryOptions) -> list[dict[str, int]]:
    """Bytes needed per context length. Raises ModelError when the file's architecture cannot be run."""
    from pyllamacpu.engine.engine import kv_bytes, scratch_bytes
    from pyllamacpu.engine.weight_bytes import weight_file_bytes
    from pyllamacpu.model.config import ModelConfig

    config = ModelConfig.from_metadata(file.metadata, file.tensors)
    weights = weight_file_bytes(file, config, stated.expert_memory)
    rows = []
    options: dict[str, Any] = {"type_k": stated.type_k, "type_v": stated.type_v}
    for n_ctx in _context_lengths(config.n_ctx_train):
        kv = kv_bytes(file, config, n_ctx, **options)
        scratch = scratch_bytes(file, config, n_ctx, **options)
        rows.append(
            {
                "context": n_ctx,
                "weights": weights,
                "kv": kv,
                "scratch": scratch,
                "total": weights + kv + scratch,
            }
        )
    return rows


def _context_lengths(n_ctx_train: int) -> Iterator[int]:
    """512, 1024, 2048 … and the training context itself."""
    n_ctx = 512
    while n_ctx < n_ctx_train:
        yield n_ctx
        n_ctx *= 2
    yield n_ctx_train


def _sections(file: GGUFFile, sections: Sequence[str], full: bool, stated: MemoryOptions) -> dict[str, Any]:
    """Those of what `--json` prints. Raises ModelError for one that the file does not have."""
    found: dict[str, Callable[[], dict[str, Any]]] = {
        "metadata": lambda: {"metadata": _metadata(file, full)},
        "tensors": lambda: {"tensors": _tensors(file), "types": _types(file)},
        "memory": lambda: {"memory": _memory(file, stated)},
        "plan": lambda: {"plan": _plan(file).split("\n")},
        "template": lambda: {"template": _template(file)},
    }
    return {key: value for name in sections for key, value in found[name]().items()}


def _metadata(file: GGUFFile, full: bool) -> dict[str, Any]:
    return {key: _json_value(file.metadata[key], full) for key in file.metadata}


def _everything(file: GGUFFile, full: bool, stated: MemoryOptions) -> dict[str, Any]:
    try:
        memory: list[dict[str, int]] | None = _memory(file, stated)
        note = None
    except ModelError as error:
        memory, note = None, str(error)
    return {
        "file": {**_facts(file), "packed_weights": _packed(file)},
        "metadata": _metadata(file, full),
        "tensors": _tensors(file),
        "types": _types(file),
        "memory": memory,
        "memory_note": note,
    }


def _json_value(value: Any, full: bool) -> Any:
    """The value for JSON; a long array becomes its length and first items unless `full`."""
    if isinstance(value, float) and not abs(value) < float("inf"):
        return str(value)  # JSON has no infinity and no NaN
    if isinstance(value, (str, int, float)):
        return value
    items = value if full else islice(_head(value), _SHOWN_ITEMS)
    plain = [_json_value(_item(item), full) for item in items]
    return plain if full or len(value) <= _SHOWN_ITEMS else {"length": len(value), "first": plain}


def _item(value: Any) -> Any:
    """An element of an array as Python's own number; arrays in arrays as they are."""
    return value.item() if hasattr(value, "item") and not hasattr(value, "__len__") else value


def _head(value: Any) -> Any:
    """The first items of an array, without decoding the rest of it."""
    return value[:_SHOWN_ITEMS]


def _text(value: Any, full: bool) -> str:
    """The value on one line, with control characters escaped: a file must not steer the terminal."""
    if isinstance(value, str):
        cut = value if full or len(value) <= _SHOWN_CHARACTERS else value[:_SHOWN_CHARACTERS]
        return _printable(cut) + (f" … ({len(value)} characters)" if len(cut) < len(value) else "")
    if isinstance(value, (bool, int)):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    items = value if full else _head(value)
    shown = ", ".join(_text(_item(item), full) for item in items)
    return f"[{shown}]" if full or len(value) <= _SHOWN_ITEMS else f"[{shown}, … {len(value)} in all]"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _print_sections(file: GGUFFile, sections: Sequence[str], full: bool, stated: MemoryOptions) -> None:
    if not sections:
        facts = _facts(file)
        facts |= {key: binary_bytes(facts[key]) for key in ("bytes", "tensor_bytes")}
        facts["packed_weights"] = _packed_text(file)
        print_table("File", ("", ""), [(key.replace("_", " "), _text(facts[key], True)) for key in facts])
    if not sections or "metadata" in sections:
        values = file.metadata
        rows = [(_printable(key), values.describe(key), _text(values[key], full)) for key in values]
        print_table("Metadata", ("key", "type", "value"), rows)
    if not sections or "tensors" in sections:
        _print_tensors(file)
    if not sections or "memory" in sections:
        _print_memory(file, stated, alone=bool(sections))


def _print_tensors(file: GGUFFile) -> None:
    tensors = [
        (_printable(row["name"]), row["type"], " × ".join(map(str, row["shape"])), str(row["bytes"]))
        for row in _tensors(file)
    ]
    print_table("Tensors", ("name", "type", "shape", "bytes"), tensors, right=(3,))
    types = [
        (row["type"], str(row["tensors"]), str(row["parameters"]), binary_bytes(row["bytes"]))
        for row in _types(file)
    ]
    print_table("Types", ("type", "tensors", "parameters", "size"), types, right=(1, 2, 3))


def _print_memory(file: GGUFFile, stated: MemoryOptions, alone: bool) -> None:
    try:
        memory = _memory(file, stated)
    except ModelError as error:
        if alone:
            raise
        click.echo(f"Memory: unknown, {_printable(str(error))}")
        return
    columns = ("weights", "kv", "scratch", "total")
    rows = [(str(row["context"]), *(binary_bytes(row[key]) for key in columns)) for row in memory]
    head = ("context", "weights", f"KV ({stated.type_k}, {stated.type_v})", "scratch", "total")
    print_table("Memory", head, rows, right=range(5))
