"""Unigram tokenizers of tokenizer.json files: ids as the tokenizers library gives them, of any text.

Covers text/unigram.py, text/unigram_pipeline.py, text/normalizers.py, text/pretokenizers.py,
convert/tokenizers/unigram_pipeline.py.
"""

from __future__ import annotations

import contextlib
import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deberta_models import converted, make_tokenizer, write_checkpoint
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from pyllamacpu.convert.tokenizers.unigram_pipeline import read_unigram_pipeline
from pyllamacpu.errors import CheckpointError, TokenizerError
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.text.normalizers import CharsMap, compiled_pattern, make_normalizer
from pyllamacpu.text.pretokenizers import make_pretokenizer
from pyllamacpu.text.unigram import Unigram
from pyllamacpu.text.unigram_pipeline import CHARSMAP, UnigramPipeline

BLOCKS = (
    *((0x20, 0x7E), (0x20, 0x7E), (0, 0x7F), (0xA0, 0x17F), (0x300, 0x36F), (0x400, 0x45F), (0x590, 0x5C7)),
    *((0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE5B), (0x1100, 0x11FF), (0x2000, 0x206F), (0x2460, 0x24FF)),
    *(
        (0x3000, 0x30FF),
        (0x3300, 0x33FF),
        (0x4E00, 0x4E40),
        (0xAC00, 0xAC40),
        (0xFB00, 0xFB06),
        (0xFE00, 0xFE0F),
    ),
    *((0xFF01, 0xFFEF), (0x1F300, 0x1F64F), (0x1F1E6, 0x1F1FF), (0xE0000, 0xE007F), (0x1D400, 0x1D454)),
)
ODD = (
    *(
        "[CLS]",
        "[SEP]",
        " [MASK] ",
        "[UNK]",
        "\r\n",
        "\n\n",
        "  ",
        "\t",
        "\x1c",
        "\x85",
        "▁",
        "▁▁",
        "\ufeff",
        "\0",
    ),
    *(
        "e\u0301",
        "ﬁ\u0301",
        "①\u0300",
        "\u200b",
        "\u200d",
        "<x>",
        " <x>",
        "word",
        "0x41",
        "İ",
        "Σ",
        "ς",
        "½",
        "x2",
    ),
)


def random_text(source: random.Random, words: list[str]) -> str:
    parts = []
    for _ in range(source.randint(1, 25)):
        kind = source.random()
        if kind < 0.35:
            parts.append(source.choice(words).replace("▁", " "))
        elif kind < 0.5:
            parts.append(source.choice(ODD))
        else:
            low, high = source.choice(BLOCKS)
            parts += (chr(source.randint(low, high)) for _ in range(source.randint(1, 4)))
    return "".join(parts)


def ours(tokenizer: Tokenizer, folder: Path) -> UnigramPipeline:
    """As it comes out of a GGUF file."""
    tokenizer.save(str(write_checkpoint(folder) / "tokenizer.json"))
    with GGUFFile.open(converted(folder, folder / "model.gguf", "f16")) as file:
        return UnigramPipeline.of_metadata(file.metadata, "model.gguf")


def check_same(tokenizer: Tokenizer, folder: Path, n_texts: int = 400) -> None:
    pipeline, source = ours(tokenizer, folder), random.Random(3)
    words = sorted(tokenizer.get_vocab(with_added_tokens=False))
    before, behind = pipeline.around
    for text in ["", " ", "a", "\0", "▁", *(random_text(source, words) for _ in range(n_texts))]:
        assert [*before, *pipeline.encode(text), *behind] == tokenizer.encode(text).ids, repr(text)


def metaspace(scheme: str = "always", split: bool = True) -> Any:
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)


PRE: dict[str, Callable[[], Any]] = {
    "punctuation": lambda: pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), metaspace()]),
    "merged": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation("merged_with_previous"), metaspace()]
    ),
    "contiguous": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation("contiguous"), metaspace("never")]
    ),
    "first": lambda: metaspace("first"),
    "whole": lambda: metaspace("always", split=False),
    "digits": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), metaspace()]),
    "numbers": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(), metaspace()]),
    "white space": lambda: pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace()]),
    "split": lambda: pre_tokenizers.Split(Regex(r"[a-c]+|\d"), "merged_with_next"),
    "inverted": lambda: pre_tokenizers.Split(Regex(r"\p{L}+"), "removed", invert=True),
}
NORMALIZERS: dict[str, Callable[[], Any]] = {
    "transformers 5": lambda: normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "),
            normalizers.NFC(),
            normalizers.Strip(left=False),
        ]
    ),
    "lower case": lambda: normalizers.Sequence([normalizers.Lowercase(), normalizers.Strip()]),
    "no accents": lambda: normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()]),
    "replaced": lambda: normalizers.Sequence([normalizers.Replace("a", "bb"), normalizers.Prepend("▁")]),
}


def test_as_deberta_s_converters_make_it(tmp_path: Path) -> None:
    check_same(make_tokenizer(), tmp_path, 1500)


@pytest.mark.parametrize("name", PRE)
def test_pre_tokenizers(name: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(pre_tokenizer=PRE[name]())
    if name == "first":  # where the first word begins is told by the text as it was
        tokenizer.normalizer = normalizers.NFC()
    check_same(tokenizer, tmp_path, 150)


@pytest.mark.parametrize("name", NORMALIZERS)
def test_normalizers(name: str, tmp_path: Path) -> None:
    check_same(make_tokenizer(NORMALIZERS[name]()), tmp_path, 150)


PATTERNS = (
    *(r"\w", r"\W+", r"\h", r"\H", r"[\w]+", r"[^\w\s]", r"[^\h]", r"[\h_]", r"[[:alnum:]]+", r"[\\w]"),
    *(r"\\w", r"[\]\w]", r"[]\w]", r"[^]\h]", r"(?i)ig\w+|\d{2,}", r"\[\w\]", r"[\[\w]", r"\w+(?=\s)"),
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_mean_what_they_mean_to_the_library(pattern: str) -> None:
    """Its regular expressions are Oniguruma's, where `\\h` is a digit of 0 to f."""
    theirs, source = normalizers.Replace(Regex(pattern), "<>"), random.Random(4)
    ours = make_normalizer({"type": "Replace", "pattern": {"Regex": pattern}, "content": "<>"}, None)
    for _ in range(400):
        letters = source.choices(
            "abcxyzABCghw019 _-\\[]².½\u200d\u200céß\u0301中٣₃Ⅷ①ⓐ\n\t", k=source.randint(1, 12)
        )
        assert ours("".join(letters)) == theirs.normalize_str("".join(letters)), letters


def test_every_mark_is_one() -> None:
    """Unicode's characters of punctuation, as the library's tables have them."""
    theirs, ours = pre_tokenizers.Punctuation(), make_pretokenizer({"type": "Punctuation"})
    every = (chr(c) for c in range(0x20000) if unicodedata.category(chr(c))[0] in "PS")
    for mark in (*every, "\U000e0001"):
        assert ours(f"a{mark}a", True) == [word for word, _ in theirs.pre_tokenize_str(f"a{mark}a")], mark


def test_bytes_for_unknown_characters(tmp_path: Path) -> None:
    check_same(make_tokenizer(byte_fallback=True), tmp_path, 300)


def test_added_tokens(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(
        [
            AddedToken("<x>", lstrip=True, rstrip=True, normalized=False),
            AddedToken("word", single_word=True, normalized=False),
            AddedToken("wo", normalized=True),
        ]
    )
    check_same(tokenizer, tmp_path, 400)
    source = random.Random(5)
    pipeline = ours(tokenizer, tmp_path)
    for _ in range(300):
        text = "".join(source.choices(["<x>", "word", "wo", " ", "  ", "r", "[SEP]", ".", "é"], k=8))
        assert pipeline.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids, repr(text)


def test_the_likeliest_pieces_win() -> None:
    scores = np.array([0.0, -1.0, -1.0, -1.5, -3.0, -2.0])
    model = Unigram(["?", "a", "b", "ab", "c", "bc"], scores, 0, False)
    assert model.encode("abc") == [1, 5]  # -1 - 2, and not -1.5 - 3
    assert model.encode("xaxyb") == [0, 1, 0, 2]  # neighbouring unknown ones are one


def test_long_words_take_linear_time(tmp_path: Path) -> None:
    pipeline = ours(make_tokenizer(), tmp_path)
    assert len(pipeline.encode("a" * 100_000)) == len(pipeline.encode("a" * 100_000 + " ")) > 10_000


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    pipeline = ours(make_tokenizer(), tmp_path)
    assert pipeline.encode(b"a\xff") == pipeline.encode("a\ufffd")
    assert pipeline.encode("a\ud800b") == pipeline.encode("a\ufffdb")


# ---- bad files ----


def broken(folder: Path, change: Callable[[dict[str, Any]], object]) -> str:
    """What is said about a tokenizer.json that was changed."""
    values = json.loads(make_tokenizer().to_str())
    change(values)
    (folder / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError) as caught:
        read_unigram_pipeline(folder, 500)
    return str(caught.value)


def test_what_cannot_be_run_is_refused(tmp_path: Path) -> None:
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    nested: dict[str, Any] = {"type": "ByteLevel"}
    for _ in range(300):
        nested = {"type": "Sequence", "processors": [nested]}
    cases: list[tuple[Callable[[dict[str, Any]], object], str]] = [
        (lambda v: v.update(normalizer={"type": "Bert"}), "normalizer 'Bert'"),
        (lambda v: v.update(pre_tokenizer={"type": "ByteLevel"}), "pre-tokenizer 'ByteLevel'"),
        (lambda v: v.update(post_processor={"type": "Other"}), "post-processor 'Other'"),
        (lambda v: v.update(pre_tokenizer={**split, "pattern": {"Regex": "("}}), "cannot be run"),
        (lambda v: v.update(pre_tokenizer={**split, "pattern": {"Regex": "a*"}}), "matches what is empty"),
        (lambda v: v["model"].update(type="BPE"), "not a Unigram"),
        (lambda v: v["model"].update(unk_id=10**6), "unk_id"),
        (lambda v: v["model"]["vocab"].append(["x", "y"]), "not a piece"),
        (lambda v: v["added_tokens"].append({"id": 10**7, "content": "far"}), "10000000"),
        (lambda v: v["normalizer"]["normalizers"][1].update(precompiled_charsmap="?"), "base64"),
        (lambda v: v["normalizer"]["normalizers"][1].update(precompiled_charsmap="é"), "base64"),
        (
            lambda v: v.update(pre_tokenizer={**split, "pattern": {"Regex": "(a{1000}){00000000099999}"}}),
            "too much",
        ),
        (lambda v: v.update(pre_tokenizer={**split, "pattern": {"String": "a" * 300_000}}), "too long"),
        (lambda v: v.update(normalizer={"type": "Prepend", "prepend": "\ud800"}), "surrogate"),
        (lambda v: v["model"]["vocab"].append(["\ud800", -1.0]), "surrogate"),
        (lambda v: v["model"].update(unk_id=True), "unk_id"),
        (lambda v: v["added_tokens"].append({"id": True, "content": "x"}), "not a token"),
        (lambda v: v["added_tokens"].append({"id": 5, "content": 7}), "not a token"),
        (lambda v: v.update(added_tokens={"a": 1}), "not a list"),
        (lambda v: v["added_tokens"].append({"id": 5, "content": "  ", "normalized": True}), "nothing of"),
        (lambda v: v.update(normalizer={"type": "Sequence", "normalizers": 5}), "without a list"),
        (lambda v: v.update(post_processor="x"), "post-processor None"),
        (lambda v: v.update(post_processor={"type": "Sequence", "processors": 5}), "without a list"),
        (lambda v: v.update(post_processor=nested), "post-processor 'Sequence'"),
        (lambda v: v["post_processor"].update(single=5), "place for the text"),
        (lambda v: v["post_processor"]["single"].insert(0, {"SpecialToken": None}), "has no id"),
        (lambda v: v["normalizer"]["normalizers"][1].update(precompiled_charsmap="AAAA"), "damaged"),
    ]
    for change, said in cases:
        assert said in broken(tmp_path, change)


def test_a_damaged_map_of_characters_raises_or_gives_text(tmp_path: Path) -> None:
    make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    keys, _ = read_unigram_pipeline(tmp_path, 500)
    data = bytearray(next(key.value for key in keys if key.name == CHARSMAP))
    source = random.Random(2)
    for _ in range(300):
        damaged = bytearray(data[: source.randint(0, len(data))] if source.random() < 0.3 else data)
        for _ in range(min(50, len(damaged))):
            damaged[source.randrange(min(len(damaged), 4000))] = source.randrange(256)
        with contextlib.suppress(TokenizerError):
            assert isinstance(CharsMap(bytes(damaged))("aé ① ﬁ\u0301\n\x01"), str)


@pytest.mark.parametrize("pattern", [r"\p{N}{1,3}| {2,}", "(?:a{9,99}){9}", "x{9999}"])
def test_patterns_that_repeat_a_little_are_taken(pattern: str) -> None:
    assert compiled_pattern({"Regex": pattern}).pattern == pattern


def test_patterns_that_take_too_long_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("normalizers", "pretokenizers"):
        monkeypatch.setattr(f"pyllamacpu.text.{module}.MATCH_SECONDS", 0.05)
    pattern = {"Regex": "(a|aa)+$"}
    normalize = make_normalizer({"type": "Replace", "pattern": pattern, "content": ""}, None)
    cut = make_pretokenizer({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False})
    for function in (normalize, lambda text: cut(text, True)):
        with pytest.raises(TokenizerError, match="too long"):
            function("a" * 200 + "b")
