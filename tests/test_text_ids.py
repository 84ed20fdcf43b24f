"""Token ids against the libraries' own: fixtures, and live on random text."""

from __future__ import annotations

import random
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from text_oracle import HOSTILE, PRES, fixture, load

from pyllamacpu.text.bpe import ByteLevelTokenizer, from_letters, to_letters
from pyllamacpu.text.bpe_words import PRE_TOKENIZERS
from pyllamacpu.text.load import load_tokenizer

# Byte-level BPE


@pytest.mark.parametrize("pre", PRES)
def test_bpe_ids_equal_the_librarys(pre: str) -> None:
    tokenizer = load(f"bpe-{pre}.json")
    expected = fixture(f"bpe-{pre}.json")
    for text, ids, special_ids in zip(HOSTILE, expected["ids"], expected["special_ids"], strict=True):
        assert tokenizer.encode(text, add_special=False) == ids, text
        assert tokenizer.encode(text, add_special=False, parse_special=True) == special_ids, text
        assert tokenizer.decode(ids) == text


def library_tokenizer(pre: str) -> Any:
    """The `tokenizers` library on a fixture's vocabulary, with a pipeline built by hand."""
    tokenizers = pytest.importorskip("tokenizers")
    metadata = fixture(f"bpe-{pre}.json")["metadata"]
    vocab = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    whole = pre == "llama-bpe"
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges, ignore_merges=whole))
    library.pre_tokenizer = library_pipeline(tokenizers.pre_tokenizers, tokenizers.Regex, pre)
    return library


def library_pipeline(parts: Any, regex: Any, pre: str) -> Any:
    if pre == "gpt-2":
        return parts.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "smollm":
        return parts.Sequence([parts.Digits(individual_digits=True), parts.ByteLevel(add_prefix_space=False)])
    splits = [parts.Split(regex(pattern), "isolated") for pattern in PRE_TOKENIZERS[pre].patterns]
    return parts.Sequence([*splits, parts.ByteLevel(add_prefix_space=False, use_regex=False)])


AWKWARD = st.sampled_from(
    [
        "'s",
        "'S",
        "'ſ",
        "’s",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\xa0",
        "\u3000",
        "\x85",
        "1",
        "12",
        "٣",
        "²",
        "Ⅷ",
        "a",
        "Z",
        "é",
        "é",
        "ß",
        "漢",
        "あ",
        "ا",
        "क्ष",
        "😀",
        "👍🏽",
        "\u200d",
        "️",
        ".",
        "!!",
        "/",
        "_",
        "\x00",
        "�",
        "\ue000",
        "▁",
        "Ġ",
    ]
)
# Newer Unicode versions have more letters than the library's own tables: keep to those that Python's has too.
CHARACTERS = st.characters(exclude_categories=["Cs"]).filter(lambda c: unicodedata.category(c) != "Cn")
TEXT = st.one_of(
    st.text(CHARACTERS, max_size=40), st.lists(st.one_of(AWKWARD, CHARACTERS), max_size=40).map("".join)
)


@pytest.mark.parametrize("pre", PRES)
def test_bpe_equals_the_library_on_random_text(pre: str) -> None:
    library, tokenizer = library_tokenizer(pre), load(f"bpe-{pre}.json")

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(TEXT)
    def check(text: str) -> None:
        assert tokenizer.encode(text, add_special=False) == library.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text

    check()


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_pre_tokenizer_splits_as_the_library_does(pre: str) -> None:
    """All patterns, in order, over the hostile texts: the same words as Oniguruma finds."""
    tokenizers = pytest.importorskip("tokenizers")
    parts = tokenizers.pre_tokenizers
    patterns = PRE_TOKENIZERS[pre].patterns
    library = parts.Sequence([parts.Split(tokenizers.Regex(pattern), "isolated") for pattern in patterns])
    for text in HOSTILE:
        words = list(PRE_TOKENIZERS[pre].split(text))
        assert "".join(words) == text
        assert words == [word for word, _ in library.pre_tokenize_str(text)], text


def test_merges_go_by_the_list_and_not_by_the_order_of_tokens() -> None:
    """`abc` is only made from ab+c; bc is made earlier, so that the text abc never becomes it."""
    letters = [to_letters(bytes((b,))) for b in range(256)]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*letters, "bc", "ab", "abc"],
        "tokenizer.ggml.merges": ["b c", "a b", "ab c"],
    }
    tokenizer = load_tokenizer(metadata)
    assert tokenizer is not None
    assert tokenizer.encode("abc") == [ord("a") - 0x21 + letters.index("!"), 256]
    metadata["tokenizer.ggml.pre"] = "llama-bpe"  # whose words are taken whole
    whole = load_tokenizer(metadata)
    assert whole is not None and whole.encode("abc", add_special=False) == [258]


def test_unknown_pre_tokenizer_is_reported() -> None:
    assert load("bpe-gpt-2.json").warnings == []
    for pre in (None, "made-up"):
        tokenizer = load("bpe-gpt-2.json", pre=pre)
        assert len(tokenizer.warnings) == 1 and "tokenizer.ggml.pre" in tokenizer.warnings[0]
        assert tokenizer.decode(tokenizer.encode("still works 123")) == "still works 123"


def test_byte_letters_are_a_bijection() -> None:
    every = bytes(range(256))
    assert from_letters(to_letters(every)) == every
    assert len(set(to_letters(every))) == 256 and " " not in to_letters(every)
    assert to_letters(b" \n!") == "ĠĊ!"
    assert from_letters("a 漢") == b"a \xe6\xbc\xa2"[:2] + "漢".encode()


def test_bytes_without_a_token_are_left_out() -> None:
    metadata = dict(fixture("bpe-gpt-2.json")["metadata"])
    tokens = list(metadata["tokenizer.ggml.tokens"])
    letter = to_letters(b"\x04")
    tokens[tokens.index(letter)] = "[unused]"
    tokenizer = load("bpe-gpt-2.json", tokens=tokens)
    assert tokenizer.encode("a\x04b") == [*load("bpe-gpt-2.json").encode("a\x04b")[::2]]


# SentencePiece


def test_sentencepiece_ids_equal_the_librarys() -> None:
    expected = fixture("sentencepiece.json")
    tokenizer = load("sentencepiece.json")
    for text, ids, decoded in zip(HOSTILE, expected["ids"], expected["decoded"], strict=True):
        assert tokenizer.encode(text, add_special=False) == ids, text
        assert tokenizer.decode(ids) == decoded == text.replace("▁", " ")  # the two are one to SentencePiece


def test_sentencepiece_equals_a_model_trained_here(tmp_path: Path) -> None:
    """The whole way: train, write the metadata, rebuild, and compare on random text."""
    prefix = tmp_path / "m"
    corpus = [line for text in HOSTILE for line in text.split("\n") if line.strip() and "\x00" not in line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_prefix=str(prefix), model_type="bpe", vocab_size=600,
        byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, character_coverage=0.98, minloglevel=2, max_sentence_length=10000,
    )  # fmt: skip
    model = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")
    n = model.get_piece_size()
    kinds = [
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1
        for i in range(n)
    ]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in range(n)],
        "tokenizer.ggml.scores": [model.get_score(i) for i in range(n)],
        "tokenizer.ggml.token_type": kinds,
    }
    tokenizer = load_tokenizer(metadata)
    assert tokenizer is not None

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(TEXT)
    def check(text: str) -> None:
        assert tokenizer.encode(text, add_special=False) == model.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")

    check()


def test_scores_that_say_nothing_are_rebuilt_from_the_ids_or_the_merges() -> None:
    """Converters of tokenizer.json-only models write one score for all tokens."""
    expected = fixture("sentencepiece.json")
    n = len(expected["metadata"]["tokenizer.ggml.tokens"])
    for scores in (None, [-1000.0] * n):
        tokenizer = load("sentencepiece.json", scores=scores)
        assert len(tokenizer.warnings) == 1 and "scores" in tokenizer.warnings[0]
        assert [tokenizer.encode(text, add_special=False) for text in HOSTILE] == expected["ids"]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a", "b", "c", "bc", "ab"],
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 1],
        "tokenizer.ggml.scores": [0.0] * 8,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.merges": ["a b", "b c"],
    }
    merged = load_tokenizer(metadata)
    assert merged is not None and merged.encode("abc", add_special=False) == [7, 5] and merged.warnings == []


def merge_by_rank(ranks: dict[str, int], word: str) -> list[str]:
    """BPE as SentencePiece defines it: the pair that makes the lowest token first, the leftmost of equals."""
    pieces = list(word)
    while True:
        pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in ranks]
        if not pairs:
            return pieces
        _, i = min(pairs)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


def test_ranks_of_merges_do_not_depend_on_the_ids() -> None:
    """Random vocabularies with constant scores, their ids in any order: "abc" is `a bc` where b c comes
    first, also if the id of `bc` is below its rank.
    """
    rng = random.Random(5)
    differ = 0
    for _ in range(200):
        made: list[str] = []
        while len(made) < 8:
            piece = rng.choice([*"abc", *made]) + rng.choice([*"abc", *made])
            made += [piece] if piece not in made and len(piece) < 7 else []
        known = {*"abc", *made}
        cuts = [(piece[:i], piece[i:]) for piece in made for i in range(1, len(piece))]
        merges = [f"{left} {right}" for left, right in cuts if left in known and right in known]
        pieces = ["a", "b", "c", *rng.sample(made, len(made))]
        metadata = {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *pieces],
            "tokenizer.ggml.token_type": [2, 3, 3] + [1] * len(pieces),
            "tokenizer.ggml.scores": [-1000.0] * (3 + len(pieces)),
            "tokenizer.ggml.add_space_prefix": False,
            "tokenizer.ggml.merges": merges,
        }
        tokenizer = load_tokenizer(metadata)
        assert tokenizer is not None and tokenizer.warnings == []
        by_id = {piece: i for i, piece in enumerate(pieces) if piece in made}
        for _ in range(20):
            word = "".join(rng.choices("abc", k=rng.randint(1, 10)))
            ids = tokenizer.encode(word, add_special=False)
            expected = merge_by_rank({piece: i for i, piece in enumerate(made)}, word)
            assert [tokenizer.piece(token) for token in ids] == expected, (merges, pieces, word)
            differ += expected != merge_by_rank(by_id, word)
    assert differ > 300, "the order of the ids would have given other pieces"


def test_space_prefix_goes_first_and_after_control_tokens() -> None:
    tokenizer = load("sentencepiece.json")
    plain = tokenizer.encode("the", add_special=False)
    assert tokenizer.piece(plain[0]).startswith("▁")
    assert tokenizer.encode("the</s>the", parse_special=True) == [1, *plain, 2, *plain]
    bare = load("sentencepiece.json", add_space_prefix=False)
    assert not bare.piece(bare.encode("the", add_special=False)[0]).startswith("▁")
    assert bare.decode(bare.encode(" the")) == " the"


def test_vocabulary_without_byte_tokens_uses_unknown() -> None:
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab"],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -3.0, -2.0, -1.5, -1.0],
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1],
    }
    tokenizer = load_tokenizer(metadata)
    assert tokenizer is not None
    assert tokenizer.encode("ab!") == [1, 3, 6, 0]
    assert tokenizer.encode(b"a\xff") == [1, 3, 4, 0]
    no_unknown = {**metadata, "tokenizer.ggml.tokens": ["x", *metadata["tokenizer.ggml.tokens"][1:]]}
    no_unknown["tokenizer.ggml.token_type"] = [1, 3, 3, 1, 1, 1, 1]
    tokenizer = load_tokenizer(no_unknown)
    assert tokenizer is not None and tokenizer.encode("ab!") == [1, 3, 6, 0]


# The real model


def test_smollm2_ids_equal_the_librarys(starter_model: Path) -> None:
    from pyllamacpu.gguf.reader import GGUFFile

    expected = fixture("smollm2.json")
    tokenizer = load_tokenizer(GGUFFile.open(starter_model).metadata, str(starter_model))
    assert (
        tokenizer is not None
        and tokenizer.n_vocab == expected["n_vocab"]
        and tokenizer.pre == expected["pre"]
    )
    assert isinstance(tokenizer, ByteLevelTokenizer)
    for text, ids in zip(HOSTILE, expected["ids"], strict=True):
        assert tokenizer.encode(text, add_special=False) == ids, text
