"""Options that would do nothing for a source are errors: nobody gives one for that."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pyllamacpu.convert.conversion import ConvertOptions
from pyllamacpu.errors import OptionError

Kind = Literal["GGUF file", "LoRA adapter", "classifier of texts", "whole model"]

_UNUSED: dict[Kind, tuple[str, ...]] = {
    "GGUF file": ("mmproj", "drop_extra_tokens", "ignored_config", "base"),
    "LoRA adapter": ("mmproj", "drop_extra_tokens", "vocab_only"),
    "classifier of texts": ("mmproj", "drop_extra_tokens", "base"),
    "whole model": ("base",),
}
_NAMES = {
    "mmproj": "--mmproj",
    "drop_extra_tokens": "--drop-extra-tokens",
    "ignored_config": "--ignore-config",
    "base": "--base",
    "vocab_only": "--vocab-only",
}
_INNER = ("text_config", "vision_config")  # objects of a config that --ignore-config reaches too


def check_used(source: Path, kind: Kind, options: ConvertOptions) -> None:
    """Raises OptionError for an option that means nothing for a source of this kind, or beside another."""
    for name in _UNUSED[kind]:
        if getattr(options, name):
            raise OptionError(f"{source} is a {kind}, for which {_NAMES[name]} has no meaning; leave it out")
    if options.mmproj:
        for name in ("vocab_only", "drop_extra_tokens"):
            if getattr(options, name):
                raise OptionError(
                    f"{_NAMES[name]} is about the tokenizer, and --mmproj writes none; give one of them"
                )


def check_ignored(options: ConvertOptions, configs: Mapping[Path, Mapping[str, Any]]) -> None:
    """Raises OptionError for a key of --ignore-config that none of these config files has."""
    known = {key for values in configs.values() for key in values}
    for values in configs.values():
        for name in _INNER:
            inner = values.get(name)
            known |= set(inner) if isinstance(inner, dict) else set()
    if missing := sorted(options.ignored_config - known):
        where = " and ".join(map(str, configs))
        raise OptionError(f"--ignore-config {missing[0]}: {where} has no such key")
