"""The option --lora, of every command that runs a model, and the chat's /lora."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, Protocol

import click

from pyllamacpu.errors import OptionError

AdapterFiles = tuple[tuple[str, float], ...]
"""Files and their scales."""

lora_option = click.option(
    "--lora",
    multiple=True,
    metavar="FILE[:SCALE]",
    help="Apply a LoRA adapter (GGUF), at a scale other than 1 if given (can be repeated).",
)


def adapter_files(given: Sequence[str]) -> AdapterFiles:
    """Files and scales from `FILE`, `FILE:SCALE`, or several joined by commas. Raises OptionError."""
    return tuple(_one(part) for text in given for part in _parts(text))


def named_adapter(text: str) -> tuple[str, str, str]:
    """`NAME@MODEL=FILE…` as (name, model, the rest); what is left out is "".  Raises OptionError."""
    named, equals, rest = text.partition("=")
    if not equals or not named or os.path.exists(text):
        return "", "", text
    name, at, model = named.partition("@")
    if at and not model:
        raise OptionError(f"--lora {text}: name the model after the @, as NAME@MODEL=FILE")
    return name, model, rest


def _parts(text: str) -> list[str]:
    path, _, scale = text.rpartition(":")
    single = os.path.exists(text) or (os.path.exists(path) and "," not in scale)
    parts = [text] if single else [part for part in text.split(",") if part]
    if not parts:
        raise OptionError(f"--lora {text!r}: names no file; give a GGUF adapter, as FILE or FILE:SCALE")
    return parts


def _one(text: str) -> tuple[str, float]:
    path, scale = text, 1.0
    if not os.path.exists(text):
        before, colon, number = text.rpartition(":")
        if colon and before:
            path, scale = before, _scale(number, text)
    if not os.path.exists(path):
        raise OptionError(f"--lora {path}: no such file; give a GGUF adapter, as FILE or FILE:SCALE")
    return path, scale


def _scale(number: str, text: str) -> float:
    try:
        scale = float(number)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise OptionError(f"--lora {text}: no such file, and {number!r} is not a scale")
    from pyllamacpu.model.lora import check_scale  # which takes a while to come

    try:
        return check_scale(scale)
    except OptionError as error:
        raise OptionError(f"--lora {text}: {error}") from None


class AdapterHolder(Protocol):
    """The part of a chat's engine that /lora works on."""

    @property
    def adapters(self) -> list[tuple[Any, float]]: ...
    def set_adapters(self, scales: dict[int, float]) -> None: ...
    def load_adapters(self, files: AdapterFiles) -> None: ...


def lora_command(engine: AdapterHolder, rest: str) -> str:
    """What `/lora REST` does and says: nothing lists, `NAME SCALE` sets a scale, `FILE[:SCALE]` loads.

    Raises OptionError, AdapterError, GGUFError.
    """
    name, _, value = rest.rpartition(" ")
    number = None if not name else _number(value)
    if number is not None:
        i = _find(engine, name.strip())
        engine.set_adapters({j: scale for j, (_, scale) in enumerate(engine.adapters)} | {i: number})
    elif rest:
        engine.load_adapters(adapter_files([rest]))
    rows = [
        f"{i}  {a.name}  scale {scale:g}, rank {a.rank}, {len(a.pairs)} weights, {a.path}"
        for i, (a, scale) in enumerate(engine.adapters)
    ]
    return "\n".join(rows) or "no adapter is loaded; /lora FILE[:SCALE] loads one"


def _number(text: str) -> float | None:
    if text.lower() in ("on", "off"):
        return 1.0 if text.lower() == "on" else 0.0
    try:
        return float(text)
    except ValueError:
        return None


def _find(engine: AdapterHolder, name: str) -> int:
    """The number of the adapter that is called so, or has that number."""
    names = [adapter.name for adapter, _ in engine.adapters]
    if name in names:
        return names.index(name)
    if name in (numbers := [str(i) for i in range(len(names))]):
        return numbers.index(name)
    there = ", ".join(f"{i} ({own})" for i, own in enumerate(names)) or "none is loaded"
    raise OptionError(f"there is no adapter {name}; there are: {there}")
