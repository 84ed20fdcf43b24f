"""What both kinds of tokenizer promise: special tokens, bytes, ids, damaged files."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from text_oracle import HOSTILE, VOCABULARIES, fixture, load
from tiny_model import vocabulary

from pyllamacpu.errors import TokenizerError
from pyllamacpu.text.bpe import ByteLevelTokenizer
from pyllamacpu.text.load import load_tokenizer
from pyllamacpu.text.spm import SentencePieceTokenizer
from pyllamacpu.text.vocab import ADDS_EOS

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


@pytest.fixture(scope="module", params=VOCABULARIES)
def any_tokenizer(request: pytest.FixtureRequest) -> Any:
    return load(request.param)


def test_bytes_that_are_no_utf8_come_back(any_tokenizer: Any) -> None:
    for data in [*INVALID, bytes(range(256)), b" \xff ", b"the\xe2\x82the"]:
        ids = any_tokenizer.encode(data, add_special=False)
        assert any_tokenizer.decode_bytes(ids) == data
        assert any_tokenizer.decode(ids) == data.decode("utf-8", "replace")


def test_the_fewest_tokens_of_a_text_are_never_too_many(any_tokenizer: Any) -> None:
    texts = [
        "",
        " ",
        "a",
        " " * 3000,
        "-" * 3000,
        "the cat " * 500,
        "\x00\x01" * 300,
        "\u4e2d\U0001f600" * 300,
    ]
    for text in [*texts, *any_tokenizer.special_tokens, *map(any_tokenizer.piece, range(100)), *INVALID]:
        for special in (False, True):
            ids = any_tokenizer.encode(text, add_special=False, parse_special=special)
            assert any_tokenizer.fewest_tokens(text) <= len(ids)
    assert any_tokenizer.kind != "gpt2" or any_tokenizer.fewest_tokens("the cat " * 100_000) > 500


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
    start = time.process_time()
    assert any_tokenizer.decode(any_tokenizer.encode(text)) == text
    assert time.process_time() - start < 20


# Bad files


@pytest.mark.parametrize("kind", ["bert", "rwkv", "plamo2", 7])
def test_other_kinds_are_named(kind: object) -> None:
    with pytest.raises(TokenizerError, match=str(kind)):
        load_tokenizer({"tokenizer.ggml.model": kind}, "file.gguf")


@pytest.mark.parametrize(
    "metadata", [{}, {"tokenizer.ggml.model": "none"}, {"tokenizer.ggml.model": "no_vocab"}]
)
def test_no_tokenizer_is_none(metadata: dict[str, Any]) -> None:
    assert load_tokenizer(metadata) is None


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


JUNK: list[Any] = [
    0,
    -1,
    2**64,
    True,
    1.5,
    float("nan"),
    "x",
    "\x00",
    b"x",
    [],
    [None],
    [1],
    ["a"],
    ["a", "a", ""],
    [[]],
    {},
]


@pytest.mark.parametrize("name", ["bpe-llama-bpe.json", "sentencepiece.json"])
def test_any_junk_gives_a_tokenizer_or_a_tokenizer_error(name: str) -> None:
    metadata = fixture(name)["metadata"]
    keys = [
        *metadata,
        "tokenizer.ggml.precompiled_charsmap",
        "tokenizer.ggml.eot_token_id",
        "tokenizer.ggml.merges",
    ]
    outcomes = set()
    for key in keys:
        for junk in JUNK:
            try:
                tokenizer = load_tokenizer({**metadata, key: junk}, "junk.gguf")
                if tokenizer is not None:
                    tokenizer.decode(tokenizer.encode("the 12 <s> é\x00漢", parse_special=True))
                    tokenizer.decode(range(tokenizer.n_vocab), special=True)
                outcomes.add("works")
            except TokenizerError as error:
                assert "junk.gguf" in str(error)
                outcomes.add("refused")
    assert outcomes == {"works", "refused"}


def test_tokens_that_are_found_inside_words_are_warned_of() -> None:
    metadata = fixture("bpe-gpt-2.json")["metadata"]
    tokens, types = metadata["tokenizer.ggml.tokens"], list(metadata["tokenizer.ggml.token_type"])
    new = ["New York", "<tool>", "12", "日本", "x>"]
    tokenizer = load("bpe-gpt-2.json", tokens=[*tokens, *new], token_type=[*types, *[4] * len(new)])
    (warning,) = tokenizer.warnings
    assert warning.startswith("'New York' is an added token that is found inside words too")
    assert tokenizer.encode("New Yorkers").count(len(tokens)) == 1  # as Hugging Face's library does


def test_an_end_behind_every_prompt_is_warned_of() -> None:
    assert load("bpe-llama-bpe.json", add_eos_token=True).warnings == [ADDS_EOS]
    assert load("bpe-llama-bpe.json", add_eos_token=False).warnings == []


def test_control_tokens_that_are_not_looked_for_are_told_of() -> None:
    metadata = fixture("bpe-gpt-2.json")["metadata"]
    tokens, types = metadata["tokenizer.ggml.tokens"], list(metadata["tokenizer.ggml.token_type"])
    for piece, warned in (("<" + "x" * 1023, False), ("<" + "x" * 1024, True)):
        tokenizer = load("bpe-gpt-2.json", tokens=[*tokens, piece], token_type=[*types, 3])
        assert (tokenizer.encode(piece, parse_special=True) == [len(tokens)]) is not warned
        assert [text for text in tokenizer.warnings if "more than 1024 characters" in text] == (
            tokenizer.warnings if warned else []
        )
        assert bool(tokenizer.warnings) is warned


ADDED = ["<|ud|>", "<tool call>", "ab>", "\n\n"]
AFTER_ADDED = [
    "<|ud|>the",
    "the<|ud|>the",
    "<|ud|> the",
    "the <|ud|> the <|ud|><|ud|>he",
    "<tool call>hello<tool call> hello",
    "h<ab>h<|ud>the",
    "the\n\nthe\n\n\nhello",
    "<s>the<|ud|>the</s>the",
    "<|ud|>",
    " <|ud|> ",
]


def library_of(pieces: list[str], scores: list[float]) -> Any:
    """Hugging Face's tokenizer of a SentencePiece vocabulary, made as its converter makes it."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers

    ids = {piece: i for i, piece in enumerate(pieces)}
    words = [piece for piece in pieces if len(piece) > 1 and not piece.startswith("<")]
    pairs = [(word[:i], word[i:]) for word in words for i in range(1, len(word))]
    merges = sorted(
        (pair for pair in pairs if pair[0] in ids and pair[1] in ids),
        key=lambda pair: (-scores[ids[pair[0] + pair[1]]], ids[pair[0]], ids[pair[1]]),
    )
    library = Tokenizer(models.BPE(ids, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.add_special_tokens([AddedToken(name, normalized=False) for name in ("<s>", "</s>")])
    library.add_tokens([AddedToken(name, normalized=False) for name in ADDED])
    return library


def test_words_after_user_defined_tokens_are_as_hugging_face_has_them() -> None:
    metadata = vocabulary()
    pieces = [*metadata["tokenizer.ggml.tokens"], *ADDED]
    scores = [*map(float, metadata["tokenizer.ggml.scores"]), *[0.0] * len(ADDED)]
    metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"] = pieces, scores
    metadata["tokenizer.ggml.token_type"] = [
        *map(int, metadata["tokenizer.ggml.token_type"]),
        *[4] * len(ADDED),
    ]
    ours, library = load_tokenizer(metadata), library_of(pieces, scores)
    assert ours is not None
    for text in [*AFTER_ADDED, "hello the world", "日é"]:
        wanted = library.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special=False, parse_special=True) == wanted, text
    spelled = [ours.piece(token) for token in ours.encode("<|ud|>the", add_special=False)]
    assert spelled == ["<|ud|>", "▁the"]


def test_runs_of_spaces_stay_sentencepieces_own() -> None:
    metadata = vocabulary()
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "▁▁▁▁"]
    metadata["tokenizer.ggml.scores"] = [*map(float, metadata["tokenizer.ggml.scores"]), 0.0]
    metadata["tokenizer.ggml.token_type"] = [*map(int, metadata["tokenizer.ggml.token_type"]), 4]
    tokenizer = load_tokenizer({**metadata, "tokenizer.ggml.add_space_prefix": False})
    assert tokenizer is not None
    pieces = [tokenizer.piece(token) for token in tokenizer.encode("h    the", add_special=False)]
    assert pieces == ["h", "▁▁▁▁", "th", "e"]


@pytest.mark.parametrize("value", ["false", [1], 0.5])
@pytest.mark.parametrize("key", ["add_bos_token", "add_eos_token"])
def test_flags_that_are_neither_true_nor_false(key: str, value: Any) -> None:
    with pytest.raises(TokenizerError, match=f"tokenizer.ggml.{key} is neither true nor false"):
        load("bpe-llama-bpe.json", **{key: value})


@pytest.mark.parametrize("value", ["1", [1], 0.5, True, -2, 10**9])
def test_ids_of_special_tokens_that_are_none(value: Any) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.ggml\.bos_token_id is"):
        load("bpe-llama-bpe.json", bos_token_id=value)


@pytest.mark.parametrize(
    "key",
    [
        *("padding_token_id", "seperator_token_id", "separator_token_id", "prefix_token_id"),
        *(f"fim_{role}_token_id" for role in ("pre", "suf", "mid", "pad", "rep", "sep")),
    ],
)
@pytest.mark.parametrize("value", [10**9, -2])
def test_ids_that_a_model_runs_without_are_left_out_when_wrong(key: str, value: int) -> None:
    plain = load("bpe-llama-bpe.json", padding_token_id=None)
    tokenizer = load("bpe-llama-bpe.json", **{"padding_token_id": None, key: value})
    assert (tokenizer.pad, tokenizer.vocab.sep, tokenizer.fim) == (plain.pad, plain.vocab.sep, plain.fim)
    (said,) = set(tokenizer.warnings) - set(plain.warnings)
    assert f"tokenizer.ggml.{key} is {value}, outside the vocabulary" in said


@pytest.mark.parametrize("key", ["bos", "eos", "unknown", "eot", "eom"])
def test_ids_that_a_model_needs_must_be_tokens(key: str) -> None:
    with pytest.raises(TokenizerError, match=rf"tokenizer\.ggml\.{key}_token_id is"):
        load("bpe-llama-bpe.json", **{f"{key}_token_id": 10**9})
