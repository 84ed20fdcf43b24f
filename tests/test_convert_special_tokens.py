"""What the files beside a tokenizer say: tokens that begin and end texts, chat templates, added tokens.

Covers convert/tokenizers/special_tokens.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizer_build import CORPUS, byte_level, converted, write
from tokenizers import AddedToken

from pyllamacpu.convert.tokenizers.vocabulary import read_vocabulary
from pyllamacpu.text.vocab import ADDS_EOS


def test_ends_of_answers(tmp_path: Path) -> None:
    library = byte_level("llama-bpe")
    library.save(str(tmp_path / "tokenizer.json"))
    ids = {
        name: library.token_to_id(name)
        for name in ("<|begin|>", "<|end|>", "<|eot_id|>", "<|eom_id|>", "<tool>")
    }
    write(tmp_path, "tokenizer_config.json", {"bos_token": "<|begin|>", "eos_token": "<|eot_id|>"})
    ends = [ids["<|end|>"], ids["<|eom_id|>"], ids["<|eot_id|>"]]
    write(tmp_path, "generation_config.json", {"eos_token_id": ends, "pad_token_id": ids["<tool>"]})
    tokenizer, found, _ = converted(tmp_path)
    assert found["tokenizer.ggml.eos_token_id"] == ids["<|eot_id|>"]
    assert found["tokenizer.ggml.eom_token_id"] == ids["<|eom_id|>"]
    assert found["tokenizer.ggml.padding_token_id"] == ids["<tool>"]
    assert set(ends) <= tokenizer.eog
    write(tmp_path, "generation_config.json", {"eos_token_id": [ids["<tool>"], 5, 6, 7]})
    tokenizer, found, vocabulary = converted(tmp_path)
    assert {ids["<tool>"], 5} <= tokenizer.eog
    assert sum("ends answers" in note for note in vocabulary.notes) == 2


def test_ids_of_the_config_count_last(tmp_path: Path) -> None:
    byte_level("llama-bpe", bos=False).save(str(tmp_path / "tokenizer.json"))
    _, found, _ = converted(
        tmp_path, config={"bos_token_id": 7, "eos_token_id": [8, 9], "pad_token_id": 10**9}
    )
    assert (found["tokenizer.ggml.bos_token_id"], found["tokenizer.ggml.eos_token_id"]) == (7, 8)
    assert "tokenizer.ggml.padding_token_id" not in found
    write(tmp_path, "special_tokens_map.json", {"bos_token": {"content": "<|begin|>"}})
    _, found, _ = converted(tmp_path, config={"bos_token_id": 7})
    assert found["tokenizer.ggml.tokens"][found["tokenizer.ggml.bos_token_id"]] == "<|begin|>"


def test_chat_templates(tmp_path: Path) -> None:
    byte_level("gpt-2").save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "tokenizer_config.json", {"chat_template": "one"})
    _, found, _ = converted(tmp_path)
    assert found["tokenizer.chat_template"] == "one"
    named = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    write(tmp_path, "tokenizer_config.json", {"chat_template": named})
    _, found, _ = converted(tmp_path)
    assert (found["tokenizer.chat_template"], found["tokenizer.chat_template.tool_use"]) == ("one", "two")
    assert found["tokenizer.chat_templates"] == ["tool_use"]
    write(tmp_path, "chat_template.jinja", "of the file")
    (tmp_path / "additional_chat_templates").mkdir()
    write(tmp_path / "additional_chat_templates", "rag.jinja", "three")
    _, found, _ = converted(tmp_path)
    assert found["tokenizer.chat_template"] == "of the file"
    assert found["tokenizer.chat_template.rag"] == "three"
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "chat_template.jinja").unlink()
    write(tmp_path, "chat_template.json", {"chat_template": "json"})
    _, found, _ = converted(tmp_path)
    assert found["tokenizer.chat_template"] == "json"


def test_what_may_not_be_meant_is_said(tmp_path: Path) -> None:
    library = byte_level("llama-bpe", bos=False)
    library.add_tokens([AddedToken("Fox", single_word=True), AddedToken("dog"), AddedToken("<x>")])
    library.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "tokenizer_config.json", {"add_eos_token": True, "eos_token": "<|end|>"})
    notes = read_vocabulary(tmp_path, {}, 0).notes
    assert any("single_word" in note and "'Fox'" in note and "dog" not in note for note in notes)
    assert any("'dog' is an added token that is found inside words" in note for note in notes)
    assert f"warning: {ADDS_EOS}" in notes and not any("<x>" in note for note in notes)


def test_spaces_that_added_tokens_take_are_said(tmp_path: Path) -> None:
    library = byte_level("llama-bpe", bos=False)
    library.add_tokens([AddedToken("<left>", lstrip=True), AddedToken("<x>")])
    library.add_special_tokens([AddedToken("<right>", rstrip=True)])
    library.save(str(tmp_path / "tokenizer.json"))
    decoder = {"7": {"content": "<both>", "lstrip": True, "rstrip": True}}
    write(tmp_path, "tokenizer_config.json", {"added_tokens_decoder": decoder})
    notes = read_vocabulary(tmp_path, {}, 0).notes
    left = next(note for note in notes if "(lstrip)" in note)
    right = next(note for note in notes if "(rstrip)" in note)
    assert "'<left>'" in left and "'<both>'" in left and "'<right>'" not in left
    assert "'<right>'" in right and "'<both>'" in right and "'<left>'" not in right
    assert not any("'<x>'" in note or "single_word" in note for note in notes)


def _trained(folder: Path, **options: Any) -> sentencepiece.SentencePieceProcessor:
    """A small BPE model in `folder`/tokenizer.model."""
    (folder / "corpus.txt").write_text("\n".join(CORPUS * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "tokenizer"), model_type="bpe",
        vocab_size=460, byte_fallback=True, minloglevel=2, normalization_rule_name="identity",
        remove_extra_whitespaces=False, character_coverage=0.98, **options,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.mark.parametrize(
    ("ids", "none"),
    [
        ({"bos_id": -1}, {"bos"}),
        ({"eos_id": -1}, {"eos"}),
        ({"bos_id": -1, "eos_id": -1}, {"bos", "eos"}),
        ({"bos_id": -1, "eos_id": 1}, {"bos"}),
    ],
)
def test_sentencepiece_without_a_begin_or_an_end(tmp_path: Path, ids: dict[str, int], none: set[str]) -> None:
    """Readers take ids 1 and 2 for BOS and EOS where a file does not say that there is none."""
    library = _trained(tmp_path, **ids)
    tokenizer, found, _ = converted(tmp_path)
    for role in ("bos", "eos"):
        stated = getattr(library, f"{role}_id")()
        assert (stated < 0) == (role in none)
        assert getattr(tokenizer, role) == (None if role in none else stated)
    assert tokenizer.eog == ({library.eos_id()} if "eos" not in none else set())
    assert tokenizer.encode("the fox")[0] == (library.encode("the fox")[0] if "bos" in none else 1)
    assert (found.get("tokenizer.ggml.add_bos_token") is False) == ("bos" in none)
    write(tmp_path, "tokenizer_config.json", {"bos_token": "<0x05>", "add_bos_token": True})
    named, _, _ = converted(tmp_path)
    assert named.encode("the fox")[0] == library.piece_to_id("<0x05>")


def test_spaces_behind_words_are_said(tmp_path: Path) -> None:
    _trained(tmp_path, treat_whitespace_as_suffix=True)
    assert any("treat_whitespace_as_suffix" in note for note in read_vocabulary(tmp_path, {}, 0).notes)
