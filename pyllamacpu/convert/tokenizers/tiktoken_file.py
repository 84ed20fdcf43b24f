"""tokenizer.model files of tiktoken (lines of base64 and rank), as Llama 3 and 4 ship them.

The files hold no special tokens: those are constants of Meta's code, by the number of tokens in the file.
Spellings are those of the Hugging Face releases where the two differ.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path

from pyllamacpu.convert.tokenizers.token_table import TokenTable
from pyllamacpu.errors import CheckpointError
from pyllamacpu.text.bpe import to_letters
from pyllamacpu.text.vocab import TokenType

_N_LLAMA4 = 200000  # tokens in the file
_LLAMA4_SPECIALS = 2048
_LLAMA3_SPECIALS = 256


def is_tiktoken(path: Path) -> bool:
    """Whether the first line is base64 and a number."""
    with open(path, "rb") as file:
        first = file.read(4096).split(b"\n", 1)[0].split()
    if len(first) != 2 or not first[1].isdigit():
        return False
    try:
        base64.b64decode(first[0], validate=True)
    except binascii.Error:
        return False
    return True


def read_tiktoken(path: Path, n_rows: int, newer: bool) -> TokenTable:
    """The table of a tiktoken file with the special tokens of Llama 4, or of Llama 3 (`newer`: of 3.1 and
    later).

    `n_rows`: of the embedding, 0 when not known. Raises CheckpointError for a damaged file.
    """
    ranks = _read_ranks(path)
    pieces = sorted(ranks, key=ranks.__getitem__)
    llama4 = len(pieces) >= _N_LLAMA4
    texts = [to_letters(piece) for piece in pieces]
    specials = _llama4_specials() if llama4 else _llama3_specials(newer)
    if n_rows:
        specials = specials[: max(0, n_rows - len(texts))]
    types = [int(TokenType.NORMAL)] * len(texts) + [int(TokenType.CONTROL)] * len(specials)
    table = TokenTable(path, "gpt2", "llama4" if llama4 else "llama-bpe", texts + specials, types)
    table.merges = merges_of(ranks)
    ids = {text: len(texts) + i for i, text in enumerate(specials)}
    roles = {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>"}
    table.special = {role: ids[text] for role, text in roles.items() if text in ids}
    table.flags["add_bos_token"] = True
    return table


def merges_of(ranks: Mapping[bytes, int]) -> list[str]:
    """Every way to cut a token into two tokens, the earliest token first: the merges of byte-level BPE."""
    merges = []
    lengths = set(map(len, ranks))  # few, also where one token is very long
    for piece in sorted(ranks, key=ranks.__getitem__):
        cuts = ((piece[:i], piece[i:]) for i in lengths if len(piece) - i in lengths)
        pairs = sorted((ranks[a], ranks[b], a, b) for a, b in cuts if a in ranks and b in ranks)
        merges += [f"{to_letters(a)} {to_letters(b)}" for _, _, a, b in pairs]
    return merges


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        parts = line.split()
        try:
            ranks[base64.b64decode(parts[0], validate=True)] = int(parts[1])
        except (binascii.Error, IndexError, ValueError):
            raise CheckpointError(path, f"line {number} is not a token and rank; download it again") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise CheckpointError(path, f"the ranks are not 0 to {len(ranks) - 1}; download it again")
    return ranks


def _llama3_specials(newer: bool) -> list[str]:
    """256 names. Llama 3.1 gave some reserved ones a meaning."""
    names = ["<|begin_of_text|>", "<|end_of_text|>", *_reserved("", 0, 4)]
    names += ["<|start_header_id|>", "<|end_header_id|>", *_reserved("", 4, 1), "<|eot_id|>"]
    if newer:
        names = ["<|begin_of_text|>", "<|end_of_text|>", *_reserved("", 0, 2), "<|finetune_right_pad_id|>"]
        names += [
            *_reserved("", 2, 1),
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eom_id|>",
            "<|eot_id|>",
        ]
        names.append("<|python_tag|>")
    first = 3 if newer else 5
    return names + _reserved("", first, _LLAMA3_SPECIALS - len(names))


def _llama4_specials() -> list[str]:
    """2048 names: basic, of text after training, of vision, of reasoning, and reserved ones."""
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
    names += ["<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>"]
    names += [
        *_reserved("text_post_train_", 0, 6),
        "<|python_start|>",
        "<|python_end|>",
        "<|finetune_right_pad|>",
    ]
    names += [
        *_reserved("text_post_train_", 8, 61),
        "<|image_start|>",
        "<|image_end|>",
        *_reserved("vision_", 0, 2),
    ]
    names += ["<|tile_x_separator|>", "<|tile_y_separator|>", *_reserved("vision_", 2, 4), "<|image|>"]
    names += [*_reserved("vision_", 6, 1), "<|patch|>", *_reserved("vision_", 7, 1041)]
    names += [*_reserved("reasoning_", 0, 8), "<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>"]
    return names + _reserved("", 0, _LLAMA4_SPECIALS - len(names))


def _reserved(group: str, first: int, count: int) -> list[str]:
    return [f"<|{group}reserved_special_token_{i}|>" for i in range(first, first + count)]
