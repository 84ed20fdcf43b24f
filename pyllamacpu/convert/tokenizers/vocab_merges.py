"""vocab.json and merges.txt without tokenizer.json: BPE as GPT-2's slow tokenizer saves it.

The two files do not say how words are cut before merging: the tokenizer's class does, in
tokenizer_config.json. They are read as the tokenizer.json that transformers would make of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyllamacpu.convert.formats.json_file import MAX_BYTES, read_json, read_optional_json
from pyllamacpu.convert.tokenizers.special_tokens import token_text
from pyllamacpu.convert.tokenizers.token_table import AddedToken, TokenTable
from pyllamacpu.convert.tokenizers.tokenizer_json import read_tokenizer_json
from pyllamacpu.errors import CheckpointError
from pyllamacpu.text.bpe import BYTE_LETTERS
from pyllamacpu.text.bpe_words import LLAMA3, QWEN2

FILES = ("vocab.json", "merges.txt")
_GPT2_CLASSES = ("GPT2", "Roberta", "GPTNeoX", "CodeGen", "CodeLlamaBPE", "Bart", "OPT")
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_GPT2_END = "<|endoftext|>"


def has_vocab_merges(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def read_vocab_merges(folder: Path, pre: str | None = None) -> TokenTable:
    """The table, with the special tokens that the JSON files beside it name. `pre` names the pre-tokenizer if
    it is known. Raises CheckpointError.
    """
    path = folder / FILES[0]
    vocab = read_json(path)
    config = read_optional_json(folder / "tokenizer_config.json")
    model = {"type": "BPE", "vocab": vocab, "merges": _merges(folder / FILES[1])}
    space = BYTE_LETTERS[0x20]
    if "<0x00>" not in vocab and any(space in text for text in vocab):
        values, note = _byte_level(model, config)
    elif "<0x00>" in vocab:
        unknown = token_text(config.get("unk_token")) or "<unk>"
        normalizer = {"type": "Prepend", "prepend": "▁"}
        note = "SentencePiece's are"
        values = {"model": {**model, "byte_fallback": True, "unk_token": unknown}, "normalizer": normalizer}
    else:
        raise CheckpointError(path, "has neither bytes as letters nor byte tokens; tokenizer.json is missing")
    table = read_tokenizer_json(path, values, pre)
    table.notes.append(f"there is no tokenizer.json: words are cut as {note}{f' ({pre})' if pre else ''}")
    table.add(
        _special(vocab, config, read_optional_json(folder / "special_tokens_map.json")), len(table), False
    )
    return table


def _byte_level(model: dict[str, Any], config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The pre-tokenizer by the tokenizer's class."""
    name = str(config.get("tokenizer_class") or "").removesuffix("Fast").removesuffix("Tokenizer")
    space = bool(config.get("add_prefix_space"))
    pattern, said = None, "GPT-2's are"
    if name == "Qwen2":
        pattern, said = QWEN2, "Qwen 2's are"
    elif name not in _GPT2_CLASSES and "<|begin_of_text|>" in str(config):
        pattern, said = LLAMA3, "Llama 3's are"
        model = {**model, "ignore_merges": True}
    whole: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": space, "use_regex": pattern is None}
    if pattern is not None:
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        whole = {"type": "Sequence", "pretokenizers": [split, whole]}
    return {"model": model, "pre_tokenizer": whole, "decoder": {"type": "ByteLevel"}}, said


def _merges(path: Path) -> list[str]:
    """A pair in each line, after a line with the version."""
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(path, "is too large for a list of merges")
    try:
        lines = path.read_text("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(path, "is not UTF-8 text; download it again") from error
    if lines[0].startswith("#version"):
        del lines[0]
    return [line.rstrip("\r") for line in lines if line.strip()]


def _special(vocab: Mapping[str, Any], *configs: Mapping[str, Any]) -> list[AddedToken]:
    """Tokens of the vocabulary that have a role, or are named as special ones."""
    named = [token_text(config.get(role)) for config in configs for role in _ROLES]
    for config in configs:
        more = config.get("additional_special_tokens")
        named += [token_text(item) for item in (more if isinstance(more, list) else [])]
    named.append(_GPT2_END)
    texts = dict.fromkeys(text for text in named if text in vocab and text is not None)
    return [AddedToken(vocab[text], text, True) for text in texts]
