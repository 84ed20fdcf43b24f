"""tokenizer.json files of the tokenizers library: byte-level BPE, with byte fallback (Llama 2's), Unigram.

How words are cut before merging is recognised by comparing the file's own patterns with those that this
package runs, whatever the vocabulary; llama.cpp's converter compares the tokens of a probe text instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyllamacpu.convert.tokenizers.token_table import AddedToken, TokenTable, check_ids
from pyllamacpu.convert.tokenizers.unigram import is_unigram, parts_of, prepends_space, read_unigram
from pyllamacpu.errors import CheckpointError
from pyllamacpu.text.bpe import BYTE_LETTERS
from pyllamacpu.text.bpe_words import DIGITS_GPT2, GPT2, PRE_TOKENIZERS
from pyllamacpu.text.spm import BYTE_PIECE
from pyllamacpu.text.vocab import TokenType

# Of several names with the same patterns, the ones that llama.cpp's converter writes for Llama's relatives.
_PREFERRED = ("llama-bpe", "llama4", "smollm", "gpt-2", "qwen2", "tekken", "dbrx", "glm4", "deepseek-llm")
_SPELLINGS = {
    # patterns of one meaning, by the one in text/bpe_words.py
    GPT2: ("'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",),
}
_SPACE_LETTER = BYTE_LETTERS[0x20]


def read_tokenizer_json(path: Path, values: Mapping[str, Any], pre: str | None = None) -> TokenTable:
    """The table without added tokens beyond the vocabulary's end. `pre` names the pre-tokenizer if it is
    known.

    Raises CheckpointError for other kinds of tokenizer and for pre-tokenizers that have no name.
    """
    model = values.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), (dict, list)):
        raise CheckpointError(path, "holds no tokenizer model")
    kind = model.get("type", "BPE")
    if is_unigram(model):
        table = read_unigram(path, values)
        _read_post_processor(table, values)
        return table
    if kind != "BPE" or not isinstance(model["vocab"], dict):
        raise CheckpointError(path, f"is a {kind} tokenizer; Llama models have BPE ones")
    texts = _ordered(path, model["vocab"])
    merges = _merges(path, model.get("merges", []))
    parts = list(parts_of(values.get("pre_tokenizer"), "pretokenizers"))
    byte_level = [*parts, *parts_of(values.get("decoder"), "decoders")]
    if any(part.get("type") == "ByteLevel" for part in byte_level):
        return _byte_level(path, values, texts, merges, pre)
    if model.get("byte_fallback"):
        return _byte_fallback(path, values, texts, merges)
    raise CheckpointError(path, "is BPE without bytes for unknown characters; GGUF files cannot state that")


def added_tokens(values: Mapping[str, Any]) -> list[AddedToken]:
    """The added tokens of a tokenizer.json."""
    listed = values.get("added_tokens")
    return [
        AddedToken(item["id"], item["content"], bool(item.get("special")))
        for item in (listed if isinstance(listed, list) else ())
        if isinstance(item, dict) and isinstance(item.get("id"), int) and isinstance(item.get("content"), str)
    ]


def _ordered(path: Path, vocab: Mapping[str, int]) -> list[str]:
    """Texts by id; an id without a text gets a name."""
    if not vocab or not all(isinstance(i, int) and 0 <= i < 1 << 24 for i in vocab.values()):
        raise CheckpointError(path, "model.vocab holds something other than token ids")
    by_id = {token: text for text, token in vocab.items()}
    if len(by_id) != len(vocab):
        raise CheckpointError(path, "model.vocab gives two tokens the same id")
    check_ids(path, max(by_id) + 1, len(by_id))
    return [by_id.get(i, f"[PAD{i}]") for i in range(max(by_id) + 1)]


def _merges(path: Path, listed: Any) -> list[tuple[str, str]]:
    """Merges are "left right", or pairs since version 4.45 of transformers."""
    if not isinstance(listed, list):
        raise CheckpointError(path, "model.merges is not a list")
    pairs = []
    for item in listed:
        pair = item.split(" ") if isinstance(item, str) else item
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(x, str) for x in pair):
            raise CheckpointError(path, f"model.merges holds {item!r}, which is not a pair")
        pairs.append((pair[0], pair[1]))
    return pairs


def _types(texts: list[str], fallback: bool) -> list[int]:
    types = []
    for i, text in enumerate(texts):
        kind = TokenType.NORMAL
        if text == f"[PAD{i}]":
            kind = TokenType.UNUSED
        elif fallback and BYTE_PIECE.match(text):
            kind = TokenType.BYTE
        types.append(int(kind))
    return types


# Byte-level BPE


def _byte_level(
    path: Path, values: Mapping[str, Any], texts: list[str], merges: list[tuple[str, str]], pre: str | None
) -> TokenTable:
    table = TokenTable(path, "gpt2", pre or pre_tokenizer_name(path, values), texts, _types(texts, False))
    table.merges = [" ".join(part.replace(" ", _SPACE_LETTER) for part in pair) for pair in merges]
    for part in parts_of(values.get("normalizer"), "normalizers"):
        table.notes.append(
            f"the tokenizer normalizes text ({part.get('type')}); GGUF files cannot state that"
        )
    if any(part.get("add_prefix_space") for part in parts_of(values.get("pre_tokenizer"), "pretokenizers")):
        table.notes.append("the tokenizer puts a space before the text; GGUF files cannot state that")
    _read_post_processor(table, values)
    return table


def pre_tokenizer_name(path: Path, values: Mapping[str, Any]) -> str:
    """tokenizer.ggml.pre: the name of what cuts text into words. Raises CheckpointError when it has none."""
    patterns = _patterns(path, values.get("pre_tokenizer"))
    whole_words = bool(values["model"].get("ignore_merges"))
    names = [name for name, known in PRE_TOKENIZERS.items() if known.patterns == patterns]
    fitting = [
        name for name in names if PRE_TOKENIZERS[name].whole_words == whole_words and name != "default"
    ]
    if not fitting:
        shown = ", ".join(repr(p if len(p) <= 80 else p[:77] + "...") for p in patterns) or "none"
        detail = f" with ignore_merges {str(whole_words).lower()}" if names else ""
        raise CheckpointError(
            path,
            f"cuts words in a way that has no name in GGUF files{detail} (patterns: {shown}); name the "
            f"nearest with "
            "--metadata tokenizer.ggml.pre=str:NAME",
        )
    return next((name for name in _PREFERRED if name in fitting), fitting[0])


def _patterns(path: Path, part: Any) -> tuple[str, ...]:
    """The regular expressions of a pre-tokenizer, in order."""
    found: list[str] = []
    for step in parts_of(part, "pretokenizers"):
        kind = step.get("type")
        if kind == "Split":
            found.append(_split_pattern(path, step))
        elif kind == "Digits":
            found.append(r"\p{N}" if step.get("individual_digits") else r"\p{N}+")
        elif kind == "ByteLevel":
            if step.get("use_regex", True):
                found.append(GPT2)
        elif kind == "Punctuation":
            found.append(r"\p{P}")
        else:
            raise CheckpointError(path, f"has a pre-tokenizer {kind}, which GGUF files cannot state")
    if found == [r"\p{N}", GPT2]:
        return (DIGITS_GPT2,)
    return tuple(found)


def _split_pattern(path: Path, step: Mapping[str, Any]) -> str:
    pattern = step.get("pattern")
    text = pattern.get("Regex") if isinstance(pattern, dict) else None
    isolated = step.get("behavior") == "Isolated" and not step.get("invert")
    removed = step.get("behavior") == "Removed" and step.get(
        "invert"
    )  # what is no match goes; all of it matches
    if not isinstance(text, str) or not (isolated or removed):
        raise CheckpointError(
            path, f"has a Split with {pattern}, {step.get('behavior')}, which GGUF files cannot state"
        )
    return next((ours for ours, theirs in _SPELLINGS.items() if text in theirs), text)


# BPE with byte fallback


def _byte_fallback(
    path: Path, values: Mapping[str, Any], texts: list[str], merges: list[tuple[str, str]]
) -> TokenTable:
    table = TokenTable(path, "llama", "default", texts, _types(texts, True))
    table.scores = merge_scores(texts, merges)
    unknown = values["model"].get("unk_token")
    if isinstance(unknown, str) and unknown in texts:
        token = texts.index(unknown)
        table.special["unk"] = token
        table.types[token] = int(TokenType.UNKNOWN)
    if not _is_complete(texts, merges):
        table.notes.append(
            "the merges are not those of a SentencePiece model: some texts may be cut differently than "
            "by the "
            "checkpoint's own tokenizer"
        )
    if not prepends_space(table, values):
        table.flags["add_space_prefix"] = False
    _read_post_processor(table, values)
    return table


def merge_scores(texts: list[str], merges: list[tuple[str, str]]) -> list[float]:
    """SentencePiece scores that merge in the order of the list: the earlier a token's first merge, the
    higher.
    """
    first: dict[str, int] = {}
    for left, right in merges:
        first.setdefault(left + right, len(first))
    scores, rest = [], len(first)
    for text in texts:
        rank = first.get(text)
        if rank is None:
            rank, rest = rest, rest + 1
        scores.append(-float(rank))
    return scores


def _is_complete(texts: list[str], merges: list[tuple[str, str]]) -> bool:
    """Whether every way to cut a merged token into two tokens is listed, and those of one token together:
    then merging by the token's score is merging by the list.
    """
    known, last, seen = set(texts), "", set()
    for left, right in merges:
        whole = left + right
        if whole != last and whole in seen:
            return False
        seen.add(whole)
        last = whole
    lengths = set(map(len, known))  # few, also where one token is very long
    cuts = ((whole[:i], whole[i:]) for whole in seen for i in lengths if len(whole) - i in lengths)
    count = sum(1 for left, right in cuts if left in known and right in known)
    return count == len(set(merges)) and seen <= known


def _read_post_processor(table: TokenTable, values: Mapping[str, Any]) -> None:
    """Which special tokens are put around a text: add_bos_token, add_eos_token."""
    for part in parts_of(values.get("post_processor"), "processors"):
        if part.get("type") != "TemplateProcessing":
            continue
        single = part.get("single")
        if not isinstance(single, list) or "Sequence" not in str(single):
            continue
        ids = part.get("special_tokens")
        for role, step in (("bos", single[0]), ("eos", single[-1])):
            name = _inner(_inner(step, "SpecialToken"), "id")
            table.flags[f"add_{role}_token"] = name is not None
            listed = _inner(_inner(ids, name), "ids")
            if isinstance(listed, list) and len(listed) == 1 and isinstance(listed[0], int):
                table.special[role] = listed[0]


def _inner(value: Any, key: Any) -> Any:
    """A value of an object; None where there is no object, or no such key."""
    return value.get(key) if isinstance(value, dict) and isinstance(key, str) else None
