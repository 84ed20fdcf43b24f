"""Tokenizers in all the files they come in: the converted one gives the ids of the library that made the
file.

Covers convert/tokenizers/sentencepiece_file.py,
convert/tokenizers/tiktoken_file.py, convert/tokenizers/token_table.py, convert/tokenizers/vocab_merges.py,
convert/tokenizers/unigram.py.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken
from tokenizer_build import CORPUS, KINDS, TEXTS, byte_level, converted, metadata, write
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from pyllamacpu.convert.tokenizers.tokenizer_json import pre_tokenizer_name
from pyllamacpu.convert.tokenizers.vocabulary import read_vocabulary
from pyllamacpu.errors import CheckpointError
from pyllamacpu.text.bpe_words import LLAMA3
from pyllamacpu.text.vocab import TokenType

# Byte-level BPE


@pytest.mark.parametrize("pre", KINDS)
def test_byte_level(tmp_path: Path, pre: str) -> None:
    library = byte_level(pre)
    library.save(str(tmp_path / "tokenizer.json"))
    n = library.get_vocab_size()
    tokenizer, found, vocabulary = converted(tmp_path, n + 3)
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", pre)
    for text in TEXTS:
        assert tokenizer.encode(text) == library.encode(text).ids, text
    marked = "<|begin|>the <tool>end<|eot_id|>"
    assert (
        tokenizer.encode(marked, parse_special=True) == library.encode(marked, add_special_tokens=False).ids
    )
    types = found["tokenizer.ggml.token_type"]
    assert types[library.token_to_id("<|begin|>")] == TokenType.CONTROL
    assert types[library.token_to_id("<tool>")] == TokenType.USER_DEFINED
    assert types[n:] == [TokenType.UNUSED] * 3
    assert found["tokenizer.ggml.tokens"][n:] == [f"[PAD{i}]" for i in range(n, n + 3)]
    assert any("3 rows" in note for note in vocabulary.notes)


@pytest.mark.parametrize("paired", [True, False])
def test_both_spellings_of_merges(tmp_path: Path, paired: bool) -> None:
    library = byte_level("smollm", bos=False)
    values = json.loads(library.to_str())
    pairs = [item.split(" ") if isinstance(item, str) else item for item in values["model"]["merges"]]
    values["model"]["merges"] = pairs if paired else [" ".join(pair) for pair in pairs]
    write(tmp_path, "tokenizer.json", values)
    tokenizer, found, _ = converted(tmp_path)
    assert found["tokenizer.ggml.add_bos_token"] is False
    for text in TEXTS:
        assert tokenizer.encode(text) == library.encode(text).ids


def test_pre_tokenizers_without_a_name_are_refused(tmp_path: Path) -> None:
    values = json.loads(byte_level("llama-bpe").to_str())
    values["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+|."
    write(tmp_path, "tokenizer.json", values)
    with pytest.raises(CheckpointError, match=r"tokenizer.ggml.pre=str:NAME"):
        read_vocabulary(tmp_path, {}, 0)
    assert metadata(read_vocabulary(tmp_path, {}, 0, pre="llama-bpe"))["tokenizer.ggml.pre"] == "llama-bpe"
    values["pre_tokenizer"] = {"type": "UnicodeScripts"}
    with pytest.raises(CheckpointError, match="UnicodeScripts"):
        pre_tokenizer_name(tmp_path, values)


# SentencePiece


@pytest.fixture(scope="module")
def sp_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sp")
    (folder / "corpus.txt").write_text("\n".join(CORPUS * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "m"), model_type="bpe", vocab_size=480,
        byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True, minloglevel=2,
        normalization_rule_name="identity", remove_extra_whitespaces=False, character_coverage=0.98,
        user_defined_symbols=["<sep>"],
    )  # fmt: skip
    return folder / "m.model"


@pytest.fixture
def sp_folder(tmp_path: Path, sp_model: Path) -> Path:
    (tmp_path / "tokenizer.model").write_bytes(sp_model.read_bytes())
    return tmp_path


def test_sentencepiece(sp_folder: Path) -> None:
    library = sentencepiece.SentencePieceProcessor(model_file=str(sp_folder / "tokenizer.model"))
    tokenizer, found, vocabulary = converted(sp_folder, 480)
    assert found["tokenizer.ggml.model"] == "llama"
    assert not vocabulary.notes
    assert [found[f"tokenizer.ggml.{role}_token_id"] for role in ("unknown", "bos", "eos")] == [0, 1, 2]
    for text in TEXTS:
        if text:
            assert tokenizer.encode(text, add_special=False) == library.encode(text), text
    assert found["tokenizer.ggml.tokens"] == [library.id_to_piece(i) for i in range(480)]
    scores = found["tokenizer.ggml.scores"]
    assert all(scores[i] == pytest.approx(library.get_score(i)) for i in range(480))
    assert found["tokenizer.ggml.token_type"][3:5] == [TokenType.USER_DEFINED, TokenType.BYTE]


def test_added_tokens_of_sentencepiece(sp_folder: Path) -> None:
    write(sp_folder, "added_tokens.json", {"<extra>": 480, "▁<PRE>": 481, "<|im_end|>": 482})
    decoder = {"483": {"content": "<pad>", "special": True}, "1": {"content": "<s>", "special": True}}
    write(
        sp_folder,
        "tokenizer_config.json",
        {
            "added_tokens_decoder": decoder,
            "pad_token": {"content": "<pad>", "lstrip": False},
            "eos_token": "<|im_end|>",
            "add_bos_token": False,
            "add_eos_token": True,
            "add_prefix_space": False,
        },
    )
    tokenizer, found, _ = converted(sp_folder, 486)
    assert found["tokenizer.ggml.tokens"][480:] == [
        "<extra>",
        " <PRE>",
        "<|im_end|>",
        "<pad>",
        "[PAD484]",
        "[PAD485]",
    ]
    kinds = [TokenType.USER_DEFINED] * 2 + [TokenType.CONTROL] * 2 + [TokenType.UNUSED] * 2
    assert found["tokenizer.ggml.token_type"][480:] == kinds
    assert found["tokenizer.ggml.padding_token_id"] == 483
    assert found["tokenizer.ggml.eos_token_id"] == 482
    flags = [
        found[f"tokenizer.ggml.{name}"] for name in ("add_bos_token", "add_eos_token", "add_space_prefix")
    ]
    assert flags == [False, True, False]
    assert tokenizer.encode("the<extra>the").count(480) == 1


def test_code_llama_fills_in(sp_model: Path, tmp_path: Path) -> None:
    pieces = ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"]
    library = json.loads(_fallback_json(sp_model))
    for i, piece in enumerate(pieces):
        library["added_tokens"].append({"id": 480 + i, "content": piece, "special": True})
    write(tmp_path, "tokenizer.json", library)
    tokenizer, found, _ = converted(tmp_path, 484)
    ids = [found[f"tokenizer.ggml.{role}_token_id"] for role in ("prefix", "suffix", "middle", "eot")]
    assert ids == [480, 481, 482, 483]
    assert [tokenizer.fim[role] for role in ("pre", "suf", "mid")] == [480, 481, 482]


def test_tokens_that_do_not_fit(sp_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"480 tokens.*only 479 rows"):
        read_vocabulary(sp_folder, {}, 479)
    write(sp_folder, "added_tokens.json", {"<pad>": 480})
    with pytest.raises(CheckpointError, match=r"'<pad>' 480.*--drop-extra-tokens"):
        read_vocabulary(sp_folder, {}, 480)
    vocabulary = read_vocabulary(sp_folder, {}, 480, drop_extra=True)
    assert vocabulary.n_tokens == 480
    assert any("<pad>" in note for note in vocabulary.notes)


def test_other_sentencepiece_models_and_damage_are_refused(tmp_path: Path, sp_model: Path) -> None:
    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=70,
        minloglevel=2,
    )
    with pytest.raises(CheckpointError, match="Unigram"):
        read_vocabulary(tmp_path, {}, 0)
    data = sp_model.read_bytes()
    for size in (1, 10, 1000, len(data) - 1):
        (tmp_path / "tokenizer.model").write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            read_vocabulary(tmp_path, {}, 480)


# BPE with byte fallback in a tokenizer.json


def _fallback_json(sp_model: Path) -> str:
    """What transformers makes of a SentencePiece model: every split of a piece into two is a merge."""
    library = sentencepiece.SentencePieceProcessor(model_file=str(sp_model))
    pieces = [library.id_to_piece(i) for i in range(library.vocab_size())]
    scores = {piece: library.get_score(i) for i, piece in enumerate(pieces) if not library.is_byte(i)}
    merges = []
    for piece in sorted(scores, key=lambda p: -scores[p]):
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        merges += [(a, b) for a, b in cuts if a in scores and b in scores]
    model = models.BPE(
        {piece: i for i, piece in enumerate(pieces)},
        merges,
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = LibraryTokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.add_tokens(["<sep>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return str(tokenizer.to_str())


def test_byte_fallback(tmp_path: Path, sp_model: Path) -> None:
    text = _fallback_json(sp_model)
    write(tmp_path, "tokenizer.json", text)
    library = LibraryTokenizer.from_str(text)
    tokenizer, found, vocabulary = converted(tmp_path)
    assert found["tokenizer.ggml.model"] == "llama"
    assert not vocabulary.notes
    for sample in TEXTS:
        if sample:
            assert tokenizer.encode(sample) == library.encode(sample).ids, sample


def test_byte_fallback_without_a_begin(tmp_path: Path, sp_model: Path) -> None:
    """Nobody names a BOS, whether id 1 could be one or is an ordinary token."""
    values = json.loads(_fallback_json(sp_model))
    values["post_processor"] = None
    for name in ("<s>", "zz"):
        values["model"]["vocab"][name] = values["model"]["vocab"].pop("<s>")
        values["added_tokens"] = [item for item in values["added_tokens"] if name == "<s>" or item["id"] != 1]
        write(tmp_path, "tokenizer.json", values)
        tokenizer, _, _ = converted(tmp_path)
        assert (
            tokenizer.encode("the the") == LibraryTokenizer.from_str(json.dumps(values)).encode("the the").ids
        )
        assert (tokenizer.bos is None) == (name == "zz")


@pytest.mark.parametrize(("scheme", "said"), [("first", True), ("always", False), ("never", False)])
def test_a_space_before_the_first_word_only_is_said(
    tmp_path: Path, sp_model: Path, scheme: str, said: bool
) -> None:
    values = json.loads(_fallback_json(sp_model))
    values["normalizer"] = None
    values["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": scheme,
        "split": False,
    }
    write(tmp_path, "tokenizer.json", values)
    _, found, vocabulary = converted(tmp_path)
    assert (found.get("tokenizer.ggml.add_space_prefix") is False) == (scheme == "never")
    assert any("prepend_scheme" in note for note in vocabulary.notes) == said


def test_incomplete_merges_are_told_of(tmp_path: Path, sp_model: Path) -> None:
    values = json.loads(_fallback_json(sp_model))
    values["model"]["merges"] = values["model"]["merges"][::2]
    write(tmp_path, "tokenizer.json", values)
    assert any("merges" in note for note in read_vocabulary(tmp_path, {}, 0).notes)


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram", "WordLevel"])
def test_other_models_are_refused(tmp_path: Path, kind: str) -> None:
    write(tmp_path, "tokenizer.json", {"model": {"type": kind, "vocab": {"a": 0}}})
    with pytest.raises(CheckpointError, match=kind):
        read_vocabulary(tmp_path, {}, 0)


# tiktoken


def _ranks() -> dict[bytes, int]:
    """Tokens in the order in which a byte-pair training would make them."""
    ranks = {bytes([i]): i for i in range(256)}
    words = [b"th", b"the", b" the", b"he", b"ll", b"hell", b" h", b"in", b"ing", b"er", b"33", b"333", b"  "]
    for word in words:
        ranks.setdefault(word, len(ranks))
    return ranks


@pytest.mark.parametrize("newer", [False, True])
def test_tiktoken(tmp_path: Path, newer: bool) -> None:
    ranks = _ranks()
    lines = [b"%s %d" % (base64.b64encode(token), rank) for token, rank in ranks.items()]
    (tmp_path / "tokenizer.model").write_bytes(b"\n".join(lines) + b"\n")
    config = {"use_scaled_rope": True} if newer else {}
    tokenizer, found, _ = converted(tmp_path, len(ranks) + 256, config=config, meta=True)
    library = tiktoken.Encoding("x", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens={})
    assert found["tokenizer.ggml.pre"] == "llama-bpe"
    for text in TEXTS:
        assert tokenizer.encode(text, add_special=False) == library.encode(text), text
    base = len(ranks)
    names = found["tokenizer.ggml.tokens"]
    assert (names[base], names[base + 9], names[base + 255]) == (
        "<|begin_of_text|>",
        "<|eot_id|>",
        f"<|reserved_special_token_{247 if newer else 250}|>",
    )
    assert ("<|eom_id|>" in names, "<|python_tag|>" in names) == (newer, newer)
    assert tokenizer.encode("")[:1] == [base]
    assert tokenizer.bos == base
    assert {base + 1, base + 9} <= tokenizer.eog


def test_a_tokenizer_above_metas_folder(tmp_path: Path, sp_model: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sp_model.read_bytes())
    (tmp_path / "7B").mkdir()
    assert read_vocabulary(tmp_path / "7B", {}, 480, meta=True).n_tokens == 480
    assert read_vocabulary(tmp_path / "7B", {}, 480).n_tokens == 0


def test_damaged_tiktoken(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_text("AA== 0\nAQ== 2\n")
    with pytest.raises(CheckpointError, match="ranks"):
        read_vocabulary(tmp_path, {}, 0)
    (tmp_path / "tokenizer.model").write_text("AA== 0\n!! 1\n")
    with pytest.raises(CheckpointError, match="line 2"):
        read_vocabulary(tmp_path, {}, 0)


# Damaged files and none


def test_no_tokenizer(tmp_path: Path) -> None:
    vocabulary = read_vocabulary(tmp_path, {}, 100)
    assert metadata(vocabulary) == {"tokenizer.ggml.model": "no_vocab"}
    assert "token ids" in vocabulary.notes[0]


@pytest.mark.parametrize("content", ["[]", "{", "\xff", '{"model": 3}', '{"model": {"vocab": {"a": "b"}}}'])
def test_damaged_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        read_vocabulary(tmp_path, {}, 0)


def test_a_token_that_is_half_a_surrogate(tmp_path: Path) -> None:
    library = byte_level("llama-bpe", bos=False)
    library.save(str(tmp_path / "tokenizer.json"))
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    values["added_tokens"].append({"id": library.get_vocab_size(), "content": "\ud800", "special": True})
    write(tmp_path, "tokenizer.json", values)
    with pytest.raises(CheckpointError, match="which is not text"):
        read_vocabulary(tmp_path, {}, 0)


# vocab.json and merges.txt


@pytest.mark.parametrize(
    ("pre", "kind"), [("gpt-2", "GPT2Tokenizer"), ("gpt-2", None), ("qwen2", "Qwen2TokenizerFast")]
)
def test_vocab_and_merges(tmp_path: Path, pre: str, kind: str | None) -> None:
    """Without a tokenizer.json, as slow tokenizers save themselves."""
    made, _ = KINDS[pre]
    library = LibraryTokenizer(models.BPE())
    library.pre_tokenizer, library.decoder = made(), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    library.train_from_iterator(CORPUS, trainer)
    library.model.save(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"vocab.json", "merges.txt"}
    library.add_special_tokens(["<|im_end|>"])
    added = {str(library.token_to_id("<|im_end|>")): {"content": "<|im_end|>", "special": True}}
    config = {"eos_token": "<|endoftext|>", "tokenizer_class": kind, "added_tokens_decoder": added}
    write(tmp_path, "tokenizer_config.json", config)
    tokenizer, found, vocabulary = converted(tmp_path)
    assert found["tokenizer.ggml.pre"] == pre and found["tokenizer.ggml.eos_token_id"] == 0
    assert any("no tokenizer.json" in note for note in vocabulary.notes)
    for text in [*TEXTS, "a<|im_end|>b<|endoftext|>"]:
        ids = library.encode(text).ids
        assert tokenizer.encode(text, add_special=False, parse_special=True) == ids, text


def test_vocab_and_merges_with_byte_tokens(tmp_path: Path, sp_model: Path) -> None:
    """SentencePiece's BPE in the two files."""
    library = sentencepiece.SentencePieceProcessor(model_file=str(sp_model))
    pieces = {library.id_to_piece(i): i for i in range(library.vocab_size())}
    ranked = sorted((p for p in pieces if len(p) > 1), key=lambda p: -library.get_score(pieces[p]))
    merges = [
        f"{p[:i]} {p[i:]}" for p in ranked for i in range(1, len(p)) if p[:i] in pieces and p[i:] in pieces
    ]
    write(tmp_path, "vocab.json", pieces)
    write(tmp_path, "merges.txt", "#version: 0.2\n" + "\n".join(merges) + "\n")
    tokenizer, found, _ = converted(tmp_path)
    assert found["tokenizer.ggml.model"] == "llama"
    for text in CORPUS[:2]:
        assert tokenizer.encode(text, add_special=False) == library.encode(text), text


def test_vocab_without_bytes_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "vocab.json", {"a": 0, "b": 1})
    write(tmp_path, "merges.txt", "")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        read_vocabulary(tmp_path, {}, 0)


# Unigram


@pytest.mark.parametrize("fallback", [True, False])
def test_unigram(tmp_path: Path, fallback: bool) -> None:
    """The likeliest pieces, as the library that made the file chooses them."""
    library = LibraryTokenizer(models.Unigram())
    library.pre_tokenizer, library.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)] if fallback else []
    trainer = trainers.UnigramTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "</s>", *bytes_],
        unk_token="<unk>",
        show_progress=False,
    )
    library.train_from_iterator([f"{text} {i}" for i in range(40) for text in CORPUS], trainer)
    made = json.loads(library.to_str())
    made["model"]["byte_fallback"] = fallback
    made["added_tokens"] = [item for item in made["added_tokens"] if not item["content"].startswith("<0x")]
    write(tmp_path, "tokenizer.json", made)
    write(tmp_path, "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"})
    library = LibraryTokenizer.from_str(json.dumps(made))
    tokenizer, found, _ = converted(tmp_path)
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.bos_token_id"]) == ("t5", 1)
    assert found["tokenizer.ggml.add_bos_token"] is False and found["tokenizer.ggml.add_space_prefix"] is True
    for text in [*CORPUS[:4], "the", "They'RE 3333 33 3.14 the end", "🦙"]:
        ids = library.encode(text).ids
        assert tokenizer.encode(text, add_special=False) == ids, text
        if fallback:
            assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vocab": [["a", "x"]]}, "not a piece with its score"),
        ({"vocab": [["a", 0.0], ["a", 1.0]], "unk_id": 0}, "same text"),
        ({"vocab": [["a", 0.0]], "unk_id": 7}, "unk_id"),
        ({"vocab": [["a", 0.0]], "unk_id": 0, "pre": {"type": {"odd": 1}}}, "pre-tokenizer"),
    ],
)
def test_damaged_unigram(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    values = {"model": {"type": "Unigram", **change}, "pre_tokenizer": change.get("pre")}
    write(tmp_path, "tokenizer.json", values)
    with pytest.raises(CheckpointError, match=says):
        read_vocabulary(tmp_path, {}, 0)
