"""Special ids and chat templates: what the JSON files beside a tokenizer say.

tokenizer_config.json, special_tokens_map.json, config.json and generation_config.json, in this order;
chat_template.jinja, chat_template.json and additional_chat_templates as transformers reads them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyllamacpu.convert.tokenizers.token_table import AddedToken, TokenTable
from pyllamacpu.errors import CheckpointError
from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.gguf.values import ValueType
from pyllamacpu.text.vocab import END_NAMES, MESSAGE_ENDS, TURN_ENDS, TokenType

# role in Hugging Face's files → GGUF key (the third is spelled as in the format)
_ROLES = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "mask": "mask_token_id",
}
# What readers take for a role that no key names, in vocabularies with scores; and the id that means "none".
_USUAL_IDS = {"unk": 0, "bos": 1, "eos": 2}
_NO_TOKEN = 0xFFFFFFFF
_FILL_IN = {"▁<PRE>": "prefix", "▁<SUF>": "suffix", "▁<MID>": "middle", "▁<EOT>": "eot"}
_NAME = re.compile(r"[^A-Za-z0-9]")


def added_from_files(added: Mapping[str, Any], config: Mapping[str, Any]) -> list[AddedToken]:
    """The tokens of added_tokens.json (text → id) and of tokenizer_config.json's added_tokens_decoder."""
    found = {token: AddedToken(token, text, False) for text, token in added.items() if isinstance(token, int)}
    decoder = config.get("added_tokens_decoder")
    for key, item in (decoder if isinstance(decoder, dict) else {}).items():
        if str(key).isdigit() and isinstance(item, dict) and isinstance(item.get("content"), str):
            found[int(key)] = AddedToken(int(key), item["content"], bool(item.get("special")))
    return list(found.values())


def special_keys(
    table: TokenTable,
    tokenizer_config: Mapping[str, Any],
    special_map: Mapping[str, Any],
    model_config: Mapping[str, Any],
    generation_config: Mapping[str, Any],
) -> list[KeyValue]:
    """tokenizer.ggml.*_token_id and add_*_token."""
    ids = {text: i for i, text in enumerate(table.texts)}
    roles: dict[str, int] = {}
    for role in _ROLES:
        for text in (
            token_text(tokenizer_config.get(f"{role}_token")),
            token_text(special_map.get(f"{role}_token")),
        ):
            if text in ids:
                roles.setdefault(role, ids[text])
        if role in table.special:
            roles.setdefault(role, table.special[role])
        for config in (model_config, generation_config):
            token = _first(config.get(f"{role}_token_id"))
            if token is not None and 0 <= token < len(table):
                roles.setdefault(role, token)
    found = {_ROLES[role]: token for role, token in roles.items()}
    found |= {f"{role}_token_id": ids[text] for text, role in _FILL_IN.items() if text in ids}
    ends = _end_ids(model_config, generation_config)
    found = _ends(table, found, [token for token in ends if 0 <= token < len(table)]) | found
    found |= {_ROLES[role]: _NO_TOKEN for role in _roles_to_deny(table, roles)}
    keys = [KeyValue(f"tokenizer.ggml.{name}", token, ValueType.UINT32) for name, token in found.items()]
    return keys + _flags(table, tokenizer_config, "bos" in roles)


def _roles_to_deny(table: TokenTable, roles: Mapping[str, int]) -> list[str]:
    """Roles without a token, whose usual id is an ordinary token here, or has another role."""
    if table.kind == "gpt2":
        return []
    special = (TokenType.CONTROL, TokenType.UNKNOWN)
    ordinary = {i for i, kind in enumerate(table.types[:3]) if kind not in special}
    taken = ordinary | set(roles.values())
    return [role for role, token in _USUAL_IDS.items() if role not in roles and token in taken]


def token_text(value: Any) -> str | None:
    """A special token is its text, or an object with it."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _first(value: Any) -> int | None:
    if isinstance(value, list):
        value = value[0] if value else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _end_ids(*configs: Mapping[str, Any]) -> list[int]:
    """All ids that end an answer, generation_config's first."""
    found: list[int] = []
    for config in reversed(configs):
        value = config.get("eos_token_id")
        listed = value if isinstance(value, list) else [value]
        found += [token for token in listed if isinstance(token, int) and token not in found]
    return found


def _ends(table: TokenTable, found: Mapping[str, int], ends: list[int]) -> dict[str, int]:
    """eot_token_id and eom_token_id for the ends besides eos: by their names where they have known ones."""
    slots: dict[str, int] = {}
    rest = []
    for token in ends:
        if token == found.get("eos_token_id"):
            continue
        text = table.texts[token]
        if text in TURN_ENDS and text not in ("<|endoftext|>", "<|end_of_text|>"):
            slots.setdefault("eot_token_id", token)
        elif text in MESSAGE_ENDS:
            slots.setdefault("eom_token_id", token)
        elif text not in END_NAMES:
            rest.append(token)
    for token in rest:
        free = [key for key in ("eot_token_id", "eom_token_id") if key not in slots and key not in found]
        if not free:
            table.notes.append(
                f"token {token} {table.texts[token]!r} ends answers, but GGUF files have no place for it"
            )
            continue
        slots[free[0]] = token
    return slots


def _flags(table: TokenTable, config: Mapping[str, Any], has_bos: bool) -> list[KeyValue]:
    """Booleans: what the tokenizer itself says comes before tokenizer_config.json."""
    flags = dict(table.flags)
    stated = {f"add_{role}_token": config.get(f"add_{role}_token") for role in ("bos", "eos")}
    stated["add_space_prefix"] = config.get("add_prefix_space") if table.kind in ("llama", "t5") else None
    for name, value in stated.items():
        if isinstance(value, bool):
            flags.setdefault(name, value)
    if table.kind == "gpt2":
        flags.setdefault("add_bos_token", False)
    if table.kind == "llama" and not has_bos:  # readers would add token 1
        flags["add_bos_token"] = False
    if table.kind == "t5":  # whose defaults in readers are those of the T5 models
        defaults = {"add_bos_token": "bos" in table.special, "add_eos_token": False, "add_space_prefix": True}
        flags = {**defaults, "remove_extra_whitespaces": False, **flags}
    return [KeyValue(f"tokenizer.ggml.{name}", value, ValueType.BOOL) for name, value in flags.items()]


def chat_templates(
    folder: Path, tokenizer_config: Mapping[str, Any], chat_json: Mapping[str, Any]
) -> list[KeyValue]:
    """tokenizer.chat_template, and further ones as tokenizer.chat_template.NAME. Raises CheckpointError."""
    named: dict[str, str] = {}
    for value in (tokenizer_config.get("chat_template"), chat_json.get("chat_template")):
        named = _named(folder, value) | named
    single = folder / "chat_template.jinja"
    if single.is_file():
        named["default"] = _text(single)
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        named[path.stem] = _text(path)
    keys = [KeyValue("tokenizer.chat_template", named.pop("default"))] if "default" in named else []
    names = {_NAME.sub("_", name): text for name, text in named.items()}
    if names:
        keys.append(KeyValue("tokenizer.chat_templates", list(names), ValueType.STRING))
    return keys + [KeyValue(f"tokenizer.chat_template.{name}", text) for name, text in names.items()]


def _named(folder: Path, value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, dict):
        return {str(name): text for name, text in value.items() if isinstance(text, str)}
    if isinstance(value, list):
        pairs = [(item.get("name"), item.get("template")) for item in value if isinstance(item, dict)]
        return {str(name): text for name, text in pairs if name and isinstance(text, str)}
    if value is not None:
        raise CheckpointError(
            folder / "tokenizer_config.json", "chat_template is neither a text nor a list of texts"
        )
    return {}


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(path, "is not UTF-8 text") from None
