"""general.*: who the model is, from its model card, its config and the name of its folder.

Source: the naming convention and key list of the ggml project's gguf.md. The model card's front matter is
YAML, of which the parts that model cards use are read: plain values, lists, and nothing nested.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyllamacpu.convert.models.fields import short
from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.gguf.values import ValueType

_SIZE = re.compile(r"(?:\d+x)?\d+(?:[._]\d+)?[KMBTkmbt]")
_VERSION = re.compile(r"v\d+(?:\.\d+)*|\d+(?:\.\d+)+", re.IGNORECASE)
_TYPE = re.compile(
    r"i?q\d(?:_\w+)*|b?f(?:p)?(?:16|32)|fp8|gguf|hf|gptq|awq|int4|int8|bnb|4bit|8bit", re.IGNORECASE
)
_SAMPLING = {
    "top_k": ("top_k", ValueType.INT32),
    "top_p": ("top_p", ValueType.FLOAT32),
    "min_p": ("min_p", ValueType.FLOAT32),
    "temperature": ("temp", ValueType.FLOAT32),
    "repetition_penalty": ("penalty_repeat", ValueType.FLOAT32),
}
_LARGEST = {ValueType.INT32: (1 << 31) - 1, ValueType.FLOAT32: float(np.finfo(np.float32).max)}
_HUB = "https://huggingface.co/"
_MAX_CARD = 1 << 22  # bytes


@dataclass(frozen=True)
class NameParts:
    """What the hub's way of naming models tells: Llama-3.2-1B-Instruct is basename Llama-3.2, size 1B,
    finetune Instruct.
    """

    name: str
    organization: str = ""
    basename: str = ""
    size: str = ""
    finetune: str = ""
    version: str = ""


def parse_name(text: str) -> NameParts:
    """The parts of `organization/Base-1B-Tune-v0.1`; a sentence is a name without parts."""
    organization, _, model = text.strip().strip("/").rpartition("/")
    organization = organization.rsplit("/", 1)[-1]
    if " " in model:
        return NameParts(model, organization)
    parts = [part for part in model.split("-") if part and not _TYPE.fullmatch(part)]
    size = next((i for i, part in enumerate(parts) if i and _SIZE.fullmatch(part)), None)
    versions = [i for i, part in enumerate(parts) if _VERSION.fullmatch(part) and i > (size or 0)]
    base_end = size if size is not None else (versions[0] if versions else len(parts))
    tune = [
        part
        for i, part in enumerate(parts)
        if i > base_end - (size is None) and i not in versions and i != size
    ]
    return NameParts(
        name=_title(model),
        organization=_title(organization),
        basename="-".join(parts[:base_end]),
        size=parts[size].upper().replace("_", ".").replace("X", "x") if size is not None else "",
        finetune="-".join(tune),
        version=parts[versions[0]] if versions else "",
    )


def _title(text: str) -> str:
    words = text.replace("-", " ").split()
    return " ".join(w.title() if w.islower() and not re.match(r"v?\d", w) else w for w in words)


def size_label(n_parameters: int, n_experts: int = 0, n_expert_parameters: int = 0) -> str:
    """`1.2B`; for experts `16x17B`, the size of one path through the model."""
    if n_experts:
        one = n_parameters - n_expert_parameters + n_expert_parameters // n_experts
        return f"{n_experts}x{size_label(one)}"
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if n_parameters > size or unit == "K":
            value = n_parameters / size
            return f"{value:.1f}{unit}" if round(value) < 10 else f"{value:.0f}{unit}"
    return ""


def _folder_name(folder: Path) -> str:
    """What the folder is called; of a snapshot in the hub's cache (models--OWNER--NAME/snapshots/COMMIT), the
    repository.
    """
    folder = folder.resolve()
    owner = folder.parent.parent.name
    if folder.parent.name == "snapshots" and owner.startswith("models--"):
        return owner.removeprefix("models--").replace("--", "/", 1)
    return folder.name


def general_keys(
    folder: Path,
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    computed_size: str,
    name: str | None = None,
    kind: str = "model",
) -> list[KeyValue]:
    """general.* but for the architecture and the file type. `name`: what the user calls it."""
    card = read_card(folder / "README.md")
    stated = str(config.get("_name_or_path") or "")
    own = parse_name(_folder_name(folder))
    hub = parse_name(stated) if stated.count("/") == 1 and not stated.startswith((".", "/")) else own
    found = [KeyValue("general.type", kind), *_sampling(generation)]
    found.append(
        KeyValue("general.name", name or _text(card.get("model_name")) or hub.name or own.name or "model")
    )
    for key, value in (
        ("version", hub.version),
        ("organization", _text(card.get("model_creator")) or hub.organization),
        ("finetune", hub.finetune),
        ("basename", hub.basename),
        ("size_label", hub.size or computed_size),
        ("license", ",".join(_list(card.get("license")))),
        ("license.name", _text(card.get("license_name"))),
        ("license.link", _text(card.get("license_link"))),
    ):
        if value:
            found.append(KeyValue(f"general.{key}", value))
    found += _origins("base_model", _list(card.get("base_model")))
    found += _origins("dataset", _list(card.get("datasets")))
    tags = list(dict.fromkeys(_list(card.get("tags")) + _list(card.get("pipeline_tag"))))
    for key, values in (("tags", tags), ("languages", _list(card.get("language")))):
        if values:
            found.append(KeyValue(f"general.{key}", values, ValueType.STRING))
    return found


def _sampling(generation: Mapping[str, Any]) -> list[KeyValue]:
    found = []
    for theirs, (ours, kind) in _SAMPLING.items():
        value = _fitting(generation.get(theirs), kind)
        if value is not None:
            found.append(KeyValue(f"general.sampling.{ours}", value, kind))
    return found


def sampling_notes(generation: Mapping[str, Any]) -> list[str]:
    """What generation_config.json says of sampling that a GGUF file cannot hold."""
    return [
        f"generation_config.json: {name} is {short(generation[name])}, which was left out: not a number that "
        f"fits {kind.name.lower()}"
        for name, (_, kind) in _SAMPLING.items()
        if generation.get(name) is not None and _fitting(generation[name], kind) is None
    ]


def _fitting(value: Any, kind: ValueType) -> int | float | None:
    """The number as one of this type; None for others."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _LARGEST[kind]:
        return None
    if kind == ValueType.FLOAT32:
        return float(value)
    return int(value) if value == int(value) else None


def _origins(kind: str, names: list[str]) -> list[KeyValue]:
    """What the model was made from: a count, and name, organization and address of each."""
    if not names:
        return []
    found = [KeyValue(f"general.{kind}.count", len(names), ValueType.UINT32)]
    for i, text in enumerate(names):
        path = text.removeprefix(_HUB).removeprefix("datasets/")
        parts = parse_name(path)
        found.append(KeyValue(f"general.{kind}.{i}.name", parts.name))
        if parts.version and kind == "base_model":
            found.append(KeyValue(f"general.{kind}.{i}.version", parts.version))
        if parts.organization:
            found.append(KeyValue(f"general.{kind}.{i}.organization", parts.organization))
            found.append(KeyValue(f"general.{kind}.{i}.repo_url", f"{_HUB}{path}"))
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _list(value: Any) -> list[str]:
    return [
        text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str) and text
    ]


def read_card(path: Path) -> dict[str, Any]:
    """The front matter of a model card: texts, and lists of texts. Empty when there is none."""
    if not path.is_file() or path.stat().st_size > _MAX_CARD:
        return {}
    lines = path.read_text("utf-8", "replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    found: dict[str, Any] = {}
    key = ""
    for line in lines[1:]:
        if line.strip() == "---":
            return found
        item = re.fullmatch(r"\s*-\s+(.*)", line)
        pair = re.fullmatch(r"([A-Za-z_]+):\s*(.*)", line)
        if pair:
            key, value = pair[1], pair[2].strip()
            found[key] = _flow(value) if value else []
        elif (
            item
            and key
            and isinstance(found[key], list)
            and ":" not in item[1].replace(": ", ":").split("//")[0]
        ) or (item and key and isinstance(found[key], list) and re.match(r"[\w-]+/[\w.-]+$", item[1])):
            found[key].append(_unquoted(item[1]))
    return {}


def _flow(value: str) -> str | list[str]:
    if value.startswith("[") and value.endswith("]"):
        return [_unquoted(part) for part in value[1:-1].split(",") if part.strip()]
    return _unquoted(value)


def _unquoted(value: str) -> str:
    value = value.strip()
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value
