"""The tokenizer of a checkpoint, from whatever files it has, as tokenizer.* metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyllamacpu.convert.fields import Key
from pyllamacpu.convert.sentencepiece_file import read_sentencepiece
from pyllamacpu.convert.special_tokens import added_from_files, chat_templates, special_keys
from pyllamacpu.convert.tiktoken_file import is_tiktoken, read_tiktoken
from pyllamacpu.convert.tokenizer_json import added_tokens, read_tokenizer_json
from pyllamacpu.convert.tokens import TokenTable
from pyllamacpu.errors import CheckpointError

_MAX_BYTES = 1 << 28
_UNREAD = ("tekken.json", "vocab.json", "tokenizer.model.v3", "spiece.model")  # kinds that are not read


@dataclass(frozen=True)
class Vocabulary:
    """Metadata of the tokenizer, how many tokens it has (0: none), and what must be said about it."""

    keys: list[Key]
    n_tokens: int
    notes: tuple[str, ...]


def read_vocabulary(
    folder: Path,
    model_config: Mapping[str, Any],
    n_rows: int,
    *,
    meta: bool = False,
    drop_extra: bool = False,
    pre: str | None = None,
) -> Vocabulary:
    """The tokenizer of the checkpoint in `folder`, made to fit an embedding of `n_rows` rows (0: not known).

    `meta`: Meta's layout, where the file may also lie one folder above. `drop_extra`: added tokens beyond the
    rows are left out instead of refused. `pre`: the pre-tokenizer's name, when it is known. Raises
    CheckpointError for files that are damaged or do not fit.
    """
    table = _read_table(folder, model_config, n_rows, meta, pre)
    if table is None:
        unread = [name for name in _UNREAD if (folder / name).is_file()]
        said = (
            f"of the tokenizer there is only {', '.join(unread)}"
            if unread
            else "there are no tokenizer files"
        )
        note = f"{said}: the result serves token ids only"
        return Vocabulary([Key("tokenizer.ggml.model", "no_vocab")], 0, (note,))
    tokenizer_config = read_json(folder / "tokenizer_config.json")
    tokenizer_json = read_json(folder / "tokenizer.json")
    added = {
        token.id: token
        for token in added_from_files(read_json(folder / "added_tokens.json"), tokenizer_config)
    }
    added |= {token.id: token for token in added_tokens(tokenizer_json)}
    rows = n_rows or max([len(table), *(token + 1 for token in added)])
    if len(table) <= rows:
        table.add(added.values(), rows, drop_extra)
    table.pad_to(rows)
    keys = table.keys()
    keys += special_keys(
        table,
        tokenizer_config,
        read_json(folder / "special_tokens_map.json"),
        model_config,
        read_json(folder / "generation_config.json"),
    )
    keys += chat_templates(folder, tokenizer_config, read_json(folder / "chat_template.json"))
    return Vocabulary(keys, len(table), tuple(table.notes))


def _read_table(
    folder: Path, config: Mapping[str, Any], n_rows: int, meta: bool, pre: str | None
) -> TokenTable | None:
    path = folder / "tokenizer.model"
    if meta and not path.is_file():
        path = folder.absolute().parent / "tokenizer.model"
    if path.is_file():
        if not is_tiktoken(path):
            return read_sentencepiece(path)
        if not (folder / "tokenizer.json").is_file():
            newer = bool(config.get("use_scaled_rope") or config.get("rope_scaling"))
            return read_tiktoken(path, n_rows, newer)
    path = folder / "tokenizer.json"
    return read_tokenizer_json(path, read_json(path), pre) if path.is_file() else None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is no file. Raises CheckpointError when it holds anything
    else.
    """
    if not path.is_file():
        return {}
    if path.stat().st_size > _MAX_BYTES:
        raise CheckpointError(path, f"has {path.stat().st_size >> 20} MB, too many for a config file")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"is no JSON: {error}; download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(path, "holds no JSON object; download it again")
    return value
