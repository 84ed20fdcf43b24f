"""The tokenizer of a checkpoint, from whatever files it has, as tokenizer.* metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyllamacpu.convert.formats.json_file import read_optional_json
from pyllamacpu.convert.tokenizers.sentencepiece_file import read_sentencepiece
from pyllamacpu.convert.tokenizers.special_tokens import added_from_files, chat_templates, special_keys
from pyllamacpu.convert.tokenizers.tiktoken_file import is_tiktoken, read_tiktoken
from pyllamacpu.convert.tokenizers.token_table import TokenTable, check_ids
from pyllamacpu.convert.tokenizers.tokenizer_json import added_tokens, read_tokenizer_json
from pyllamacpu.convert.tokenizers.vocab_merges import has_vocab_merges, read_vocab_merges
from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.text.vocab import ADDS_EOS, found_in_words, word_tokens

_UNREAD = ("tekken.json", "vocab.json", "merges.txt", "spiece.model")  # kinds that are not read
_MARKS = {  # of added tokens, and what they mean
    "single_word": "are whole words",
    "lstrip": "take the spaces before them",
    "rstrip": "take the spaces after them",
}


@dataclass(frozen=True)
class Vocabulary:
    """Metadata of the tokenizer, how many tokens it has (0: none), and what must be said about it."""

    keys: list[KeyValue]
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
        return Vocabulary([KeyValue("tokenizer.ggml.model", "no_vocab")], 0, (note,))
    tokenizer_config = read_optional_json(folder / "tokenizer_config.json")
    tokenizer_json = read_optional_json(folder / "tokenizer.json")
    added = {
        token.id: token
        for token in added_from_files(read_optional_json(folder / "added_tokens.json"), tokenizer_config)
    }
    added |= {token.id: token for token in added_tokens(tokenizer_json)}
    rows = n_rows or max([len(table), *(token + 1 for token in added)])
    check_ids(table.path, rows, len(table) + len(added))
    if len(table) <= rows:
        table.add(added.values(), rows, drop_extra)
    table.pad_to(rows)
    keys = table.keys()
    keys += special_keys(
        table,
        tokenizer_config,
        read_optional_json(folder / "special_tokens_map.json"),
        model_config,
        read_optional_json(folder / "generation_config.json"),
    )
    stated = (tokenizer_config.get("added_tokens_decoder"), tokenizer_json.get("added_tokens"))
    table.notes += _warnings(table, keys, stated)
    keys += chat_templates(folder, tokenizer_config, read_optional_json(folder / "chat_template.json"))
    return Vocabulary(keys, len(table), tuple(table.notes))


def _warnings(table: TokenTable, keys: list[KeyValue], added: tuple[Any, ...]) -> list[str]:
    """What the result will do that may not be meant."""
    found = []
    whole = _marked(added, "single_word")
    for mark, said in _MARKS.items():
        if marked := _marked(added, mark):
            shown = ", ".join(map(repr, marked[:3]))
            found.append(f"GGUF cannot say that added tokens {said} ({mark}): {shown}")
    if words := [text for text in word_tokens(table.texts, table.types) if text not in whole]:
        found.append(found_in_words(words))
    if any(key.name == "tokenizer.ggml.add_eos_token" and key.value for key in keys):
        found.append(ADDS_EOS)
    return [f"warning: {text}" for text in found]


def _marked(added: tuple[Any, ...], mark: str) -> list[str]:
    """Added tokens of tokenizer.json and tokenizer_config.json for which `mark` is true."""
    found = []
    for items in added:
        values = items.values() if isinstance(items, dict) else items if isinstance(items, list) else ()
        dicts = [item for item in values if isinstance(item, dict) and item.get(mark) is True]
        found += [str(item.get("content")) for item in dicts]
    return list(dict.fromkeys(found))


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
    if path.is_file():
        return read_tokenizer_json(path, read_optional_json(path), pre)
    if has_vocab_merges(folder):
        return read_vocab_merges(folder, pre)
    versions = sorted(folder.glob("tokenizer.model.v[0-9]*"))  # as Mistral numbers them
    return read_sentencepiece(versions[-1]) if versions and not is_tiktoken(versions[-1]) else None
