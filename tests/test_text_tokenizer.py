"""Token ids against the libraries' own: fixtures, and live on random text."""

from __future__ import annotations

import json
import os
import random
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllamacpu.errors import TokenizerError
from pyllamacpu.text.bpe import ByteLevelTokenizer, Merges, from_letters, tiktoken_is_exact, to_letters
from pyllamacpu.text.pretokenize import PRE_TOKENIZERS
from pyllamacpu.text.spm import SentencePieceTokenizer
from pyllamacpu.text.stream import StreamDecoder
from pyllamacpu.text.tokenizer import Tokenizer

FIXTURES = Path(__file__).parent / "fixtures" / "text"
PRES = ["smollm", "llama-bpe", "llama4", "gpt-2"]
INVALID = [
    b"\xff",
    b"a\xff\xfeb",
    b"\xe4\xbd",
    b"\xe4\xbd\xa0\xe4",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\x80 \x80",
    b"\xf5\xf6",
]


def fixture(name: str) -> dict[str, Any]:
    return dict(json.loads((FIXTURES / name).read_text(encoding="ascii")))


HOSTILE: list[str] = fixture("hostile.json")["texts"]


def load(name: str, **changes: Any) -> Any:
    """Our tokenizer for a fixture's metadata; a change to None removes the key."""
    metadata = {
        **fixture(name)["metadata"],
        **{f"tokenizer.ggml.{key}": value for key, value in changes.items()},
    }
    return Tokenizer.from_metadata({key: value for key, value in metadata.items() if value is not None}, name)


@pytest.fixture(scope="module", params=[*(f"bpe-{pre}.json" for pre in PRES), "sentencepiece.json"])
def any_tokenizer(request: pytest.FixtureRequest) -> Any:
    return load(request.param)


# Byte-level BPE


@pytest.mark.parametrize("pre", PRES)
def test_bpe_ids_equal_the_librarys(pre: str) -> None:
    tokenizer = load(f"bpe-{pre}.json")
    expected = fixture(f"bpe-{pre}.json")
    for text, ids, special_ids in zip(HOSTILE, expected["ids"], expected["special_ids"], strict=True):
        assert tokenizer.encode(text, add_special=False) == ids, text
        assert tokenizer.encode(text, add_special=False, parse_special=True) == special_ids, text
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("pre", PRES)
def test_bpe_ids_do_not_depend_on_who_merges(pre: str) -> None:
    """tiktoken and the list of merges agree, and both equal the library."""
    tokenizer = load(f"bpe-{pre}.json")
    assert tokenizer._encoding is not None
    slow = load(f"bpe-{pre}.json")
    slow.__dict__["_encoding"] = None
    for text, ids in zip(HOSTILE, fixture(f"bpe-{pre}.json")["ids"], strict=True):
        assert slow.encode(text, add_special=False) == ids, text


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
        "\u00a0",
        "\u3000",
        "\u0085",
        "1",
        "12",
        "٣",
        "²",
        "Ⅷ",
        "a",
        "Z",
        "é",
    ]
    + [
        "e\u0301",
        "ß",
        "漢",
        "あ",
        "ا",
        "क्ष",
        "😀",
        "👍🏽",
        "\u200d",
        "\ufe0f",
        ".",
        "!!",
        "/",
        "_",
        "\x00",
        "\ufffd",
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


def random_merges(rng: random.Random) -> list[str]:
    tokens, merges = ["a", "b", "c"], []
    for _ in range(rng.randint(2, 9)):
        left, right = rng.choice(tokens), rng.choice(tokens)
        pair = f"{left} {right}"
        repeated = left + right in tokens
        if pair not in merges and (not repeated or merges[-1].replace(" ", "") == left + right):
            merges.append(pair)
            tokens.extend([] if repeated else [left + right])
    return merges


def test_tiktoken_is_trusted_only_where_it_is_exact() -> None:
    """On random lists of merges, also impossible ones: whenever the check says exact, all words come out alike."""
    rng = random.Random(11)
    trusted = refused = 0
    for _ in range(1500):
        merges = random_merges(rng)
        pieces = list(dict.fromkeys([*"abc", *(merge.replace(" ", "") for merge in merges)]))
        one_merge_each = len(pieces) == 3 + len(merges)
        ranks = {piece.encode(): i for i, piece in enumerate(pieces)}
        encoding = tiktoken.Encoding("test", pat_str=r"(?s:.+)", mergeable_ranks=ranks, special_tokens={})
        words = ["".join(rng.choices("abc", k=rng.randint(1, 9))) for _ in range(60)]
        differ = [
            word
            for word in words
            if [pieces[i] for i in encoding._encode_single_piece(word)] != Merges(merges).merge_word(word)
            and (one_merge_each or word not in pieces)  # words that are tokens are not given to tiktoken then
        ]
        if tiktoken_is_exact(merges):
            trusted += 1
            assert not differ, (merges, differ)
        else:
            refused += bool(differ)
    assert trusted > 500 and refused > 50


def test_a_list_that_tiktoken_cannot_do_is_merged_by_the_list() -> None:
    """`abc` is only made from ab+c; bc is made earlier, so that the text abc never becomes it."""
    letters = [to_letters(bytes((b,))) for b in range(256)]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*letters, "bc", "ab", "abc"],
        "tokenizer.ggml.merges": ["b c", "a b", "ab c"],
    }
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer is not None
    assert tokenizer.encode("abc") == [ord("a") - 0x21 + letters.index("!"), 256]
    metadata["tokenizer.ggml.pre"] = "llama-bpe"  # whose words are taken whole
    whole = Tokenizer.from_metadata(metadata)
    assert whole is not None and whole.encode("abc", add_special=False) == [258]


def test_unknown_pre_tokenizer_is_said() -> None:
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
        sentence_iterator=iter(corpus), model_prefix=str(prefix), model_type="bpe", vocab_size=600, byte_fallback=True,
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
    tokenizer = Tokenizer.from_metadata(metadata)
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
    merged = Tokenizer.from_metadata(metadata)
    assert merged is not None and merged.encode("abc", add_special=False) == [7, 5] and merged.warnings == []


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
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer is not None
    assert tokenizer.encode("ab!") == [1, 3, 6, 0]
    assert tokenizer.encode(b"a\xff") == [1, 3, 4, 0]
    no_unknown = {**metadata, "tokenizer.ggml.tokens": ["x", *metadata["tokenizer.ggml.tokens"][1:]]}
    no_unknown["tokenizer.ggml.token_type"] = [1, 3, 3, 1, 1, 1, 1]
    tokenizer = Tokenizer.from_metadata(no_unknown)
    assert tokenizer is not None and tokenizer.encode("ab!") == [1, 3, 6, 0]


# Both kinds


def test_bytes_that_are_no_utf8_come_back(any_tokenizer: Any) -> None:
    for data in [*INVALID, bytes(range(256)), b" \xff ", b"the\xe2\x82the"]:
        ids = any_tokenizer.encode(data, add_special=False)
        assert any_tokenizer.decode_bytes(ids) == data
        assert any_tokenizer.decode(ids) == data.decode("utf-8", "replace")


def test_special_spellings_are_text_unless_asked_for(any_tokenizer: Any) -> None:
    for name, token in any_tokenizer.special_tokens.items():
        text = f"x {name}y"
        ids = any_tokenizer.encode(text, add_special=False)
        assert token not in ids and any_tokenizer.decode(ids) == text
        assert any_tokenizer.encode(text, add_special=False, parse_special=True).count(token) == 1


def test_user_defined_tokens_are_matched_in_any_text() -> None:
    metadata = fixture("bpe-gpt-2.json")["metadata"]
    tokens, types = metadata["tokenizer.ggml.tokens"], list(metadata["tokenizer.ggml.token_type"])
    tokenizer = load("bpe-gpt-2.json", tokens=[*tokens, "<tool call>"], token_type=[*types, 4])
    new = len(tokens)
    assert tokenizer.encode("a<tool call>b").count(new) == 1
    assert tokenizer.decode([new]) == "<tool call>"


def test_bos_and_eos_are_added_once() -> None:
    tokenizer = load("bpe-llama-bpe.json", add_bos_token=True, add_eos_token=True)
    begin, end = tokenizer.bos, tokenizer.eos
    assert tokenizer.encode("") == [begin, end]
    assert tokenizer.encode("a")[0] == begin and tokenizer.encode("a")[-1] == end
    assert tokenizer.encode("<|begin|>a<|end_turn|>", parse_special=True) == tokenizer.encode("a")
    assert tokenizer.encode("a", add_special=False) == tokenizer.encode("a")[1:-1]
    assert load("bpe-llama-bpe.json", add_bos_token=None).add_bos, (
        "llama-bpe adds BOS when the file does not say"
    )
    assert not load("bpe-gpt-2.json", add_bos_token=None).add_bos
    assert load("sentencepiece.json").encode("") == [1]


def test_end_of_generation_is_known_by_id_and_by_name() -> None:
    tokenizer = load("bpe-llama-bpe.json")
    assert tokenizer.eog == {tokenizer.eos, tokenizer.token_id("<|eot_id|>")}
    assert tokenizer.eot == tokenizer.token_id("<|eot_id|>")
    types = fixture("bpe-llama-bpe.json")["metadata"]["tokenizer.ggml.token_type"]
    careless = load("bpe-llama-bpe.json", token_type=[1] * len(types))
    assert careless.is_control(careless.eot), (
        "a converter that forgot the types does not make <|eot_id|> text"
    )
    assert load("sentencepiece.json").eog == {2}


def test_ids_out_of_range_are_refused(any_tokenizer: Any) -> None:
    for token in (-1, any_tokenizer.n_vocab, 1 << 40):
        for use in (any_tokenizer.token_bytes, any_tokenizer.is_control, any_tokenizer.piece):
            with pytest.raises(TokenizerError, match="outside the vocabulary"):
                use(token)
        with pytest.raises(TokenizerError):
            any_tokenizer.decode([token])


def test_control_tokens_are_hidden_unless_asked_for(any_tokenizer: Any) -> None:
    name, token = next(iter(any_tokenizer.special_tokens.items()))
    assert any_tokenizer.token_bytes(token) == b"" and any_tokenizer.decode([token]) == ""
    assert any_tokenizer.token_bytes(token, special=True).decode() == name
    assert any_tokenizer.decode([token], special=True) == name


def test_newline_token(any_tokenizer: Any) -> None:
    assert any_tokenizer.token_bytes(any_tokenizer.nl) == b"\n"


def test_lone_surrogates_do_not_crash(any_tokenizer: Any) -> None:
    assert any_tokenizer.decode(any_tokenizer.encode("a\ud83d\ude00b")) == "a😀b"
    assert any_tokenizer.decode(any_tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert (
        any_tokenizer.decode_bytes(any_tokenizer.encode(os.fsdecode(b"x\xff"), add_special=False)) == b"x\xff"
    )


@pytest.mark.parametrize(
    "text", ["a" * 100_000, " " * 1_000_000 + "x", "漢" * 50_000, "aB" * 50_000, "\u0301" * 100_000]
)
def test_long_runs_take_reasonable_time(any_tokenizer: Any, text: str) -> None:
    start = time.perf_counter()
    assert any_tokenizer.decode(any_tokenizer.encode(text)) == text
    assert time.perf_counter() - start < 20


def test_own_merge_loop_is_not_quadratic() -> None:
    merges = Merges(["a a", "aa aa", "aaaa aaaa"])
    start = time.perf_counter()
    assert merges.merge_word("a" * 100_000) == ["a" * 8] * 12_500
    assert time.perf_counter() - start < 10


# The stream


def test_stream_equals_decoding_at_once(any_tokenizer: Any) -> None:
    rng = random.Random(3)
    sequences = [any_tokenizer.encode(text) for text in HOSTILE]
    sequences += [[rng.randrange(any_tokenizer.n_vocab) for _ in range(60)] for _ in range(40)]
    for ids in sequences:
        for special in (False, True):
            for at_start in (False, True):
                stream = StreamDecoder(any_tokenizer, special=special, at_start=at_start)
                pieces = [stream.push(token) for token in ids]
                text = any_tokenizer.decode(ids, special=special, at_start=at_start)
                assert "".join(pieces) + stream.flush() == text


def test_stream_never_emits_half_a_character(any_tokenizer: Any) -> None:
    text = "😀👩‍👩‍👧 漢字 नमस्ते é"
    stream = StreamDecoder(any_tokenizer, at_start=True)
    pieces = [stream.push(token) for token in any_tokenizer.encode(text)]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == text and stream.pending == b"" and stream.flush() == ""


def test_stream_marks_what_never_became_a_character(any_tokenizer: Any) -> None:
    stream = StreamDecoder(any_tokenizer, at_start=True)
    pieces = [stream.push(token) for token in any_tokenizer.encode(b"a\xf0\x9f", add_special=False)]
    assert "".join(pieces) == "a" and stream.pending == b"\xf0\x9f"
    assert stream.flush() == "\ufffd" and stream.flush() == ""


def test_continued_text_keeps_its_leading_space() -> None:
    tokenizer = load("sentencepiece.json")
    ids = tokenizer.encode("the", add_special=False)
    assert tokenizer.decode(ids) == "the"
    assert tokenizer.decode(ids, at_start=False) == " the"
    assert "".join(map(StreamDecoder(tokenizer).push, ids)) == " the"


# Bad files


@pytest.mark.parametrize("kind", ["bert", "t5", "rwkv", "plamo2", 7])
def test_other_kinds_are_named(kind: object) -> None:
    with pytest.raises(TokenizerError, match=str(kind)):
        Tokenizer.from_metadata({"tokenizer.ggml.model": kind}, "file.gguf")


@pytest.mark.parametrize(
    "metadata", [{}, {"tokenizer.ggml.model": "none"}, {"tokenizer.ggml.model": "no_vocab"}]
)
def test_no_tokenizer_is_none(metadata: dict[str, Any]) -> None:
    assert Tokenizer.from_metadata(metadata) is None


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": None},
        {"tokens": []},
        {"tokens": "abc"},
        {"tokens": [1, 2, 3]},
        {"token_type": [1]},
        {"bos_token_id": 10**6},
        {"eos_token_id": "x"},
    ],
)
@pytest.mark.parametrize("name", ["bpe-gpt-2.json", "sentencepiece.json"])
def test_damaged_vocabularies_are_refused_by_name(name: str, change: dict[str, Any]) -> None:
    with pytest.raises(TokenizerError, match=next(iter(change))) as error:
        load(name, **change)
    assert name in str(error.value)


@pytest.mark.parametrize("change", [{"scores": [1.0]}, {"scores": [float("nan")] * 700}])
def test_damaged_scores_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(TokenizerError, match="scores"):
        load("sentencepiece.json", **change)


@pytest.mark.parametrize("merges", [None, 5, [1]])
def test_damaged_merges_are_refused(merges: Any) -> None:
    with pytest.raises(TokenizerError, match="merges"):
        load("bpe-gpt-2.json", merges=merges)


@pytest.mark.parametrize("name", ["bpe-gpt-2.json", "sentencepiece.json"])
def test_empty_and_repeated_tokens_keep_their_ids(name: str) -> None:
    tokens = fixture(name)["metadata"]["tokenizer.ggml.tokens"]
    types = fixture(name)["metadata"]["tokenizer.ggml.token_type"]
    changes: dict[str, Any] = {"tokens": [*tokens, "", "", tokens[-1]], "token_type": [*types, 5, 5, 5]}
    if name == "sentencepiece.json":
        changes["scores"] = [*fixture(name)["metadata"]["tokenizer.ggml.scores"], 0.0, 0.0, 0.0]
    tokenizer = load(name, **changes)
    assert tokenizer.n_vocab == len(tokens) + 3
    assert [tokenizer.encode(text, add_special=False) for text in HOSTILE] == fixture(name)["ids"]


def test_kinds() -> None:
    assert isinstance(load("bpe-gpt-2.json"), ByteLevelTokenizer) and load("bpe-gpt-2.json").kind == "gpt2"
    assert (
        isinstance(load("sentencepiece.json"), SentencePieceTokenizer)
        and load("sentencepiece.json").kind == "llama"
    )


# The real model


def test_smollm2_ids_equal_the_librarys(starter_model: Path) -> None:
    from pyllamacpu.gguf.reader import GGUFFile

    expected = fixture("smollm2.json")
    tokenizer = Tokenizer.from_metadata(GGUFFile.open(starter_model).metadata, str(starter_model))
    assert (
        tokenizer is not None
        and tokenizer.n_vocab == expected["n_vocab"]
        and tokenizer.pre == expected["pre"]
    )
    assert isinstance(tokenizer, ByteLevelTokenizer) and tokenizer._encoding is not None
    for text, ids in zip(HOSTILE, expected["ids"], strict=True):
        assert tokenizer.encode(text, add_special=False) == ids, text
