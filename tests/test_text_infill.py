"""Filling in the middle: ids against SentencePiece, used as Meta's reference code does; the API; the command.

Covers text/infill.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sentencepiece
from cli_letters import Result, run  # noqa: F401
from tiny_model import BOS, MID, PIECES, PRE, SUF, write_model

from pyllamacpu import Llama
from pyllamacpu.errors import TokenizerError
from pyllamacpu.text import Tokenizer, load_tokenizer
from pyllamacpu.text.infill import can_fill_in, infill_prompt, prompt_with_hole

MARKS = ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"]
CODE = [
    "def add(a, b):\n    return a + b\n",
    "  x = 1\n",
    "",
    " ",
    "\n\n    if not x:\n        pass",
    "for i in range(10): print(i)",
    "naïve ☺ <s> [INST]",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> sentencepiece.SentencePieceProcessor:
    """A vocabulary like Code Llama's: spaces kept, a space put before the first word."""
    prefix = tmp_path_factory.mktemp("spm") / "m"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text for text in CODE * 20 if text),
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
        user_defined_symbols=MARKS,
    )
    return sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")


@pytest.fixture(scope="module")
def tokenizer(model: sentencepiece.SentencePieceProcessor) -> Tokenizer:
    """The same as a model file has it."""
    n = model.get_piece_size()
    pieces = [model.id_to_piece(i) for i in range(n)]
    types = [
        2
        if model.is_unknown(i)
        else 3
        if model.is_control(i) or pieces[i] in MARKS
        else 6
        if model.is_byte(i)
        else 1
        for i in range(n)
    ]
    made = load_tokenizer(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": pieces,
            "tokenizer.ggml.scores": [model.get_score(i) for i in range(n)],
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
        }
    )
    assert made is not None
    return made


@pytest.mark.parametrize("suffix_first", [False, True])
@pytest.mark.parametrize("prefix", CODE)
@pytest.mark.parametrize("suffix", CODE)
def test_ids_are_those_of_the_reference_code(
    model: sentencepiece.SentencePieceProcessor,
    tokenizer: Tokenizer,
    prefix: str,
    suffix: str,
    suffix_first: bool,
) -> None:
    """Meta's `infilling_prompt_tokens`: the suffix is encoded behind ☺, which is then cut off."""
    pre, suf, mid = (model.piece_to_id(f"▁<{name}>") for name in ("PRE", "SUF", "MID"))
    before = model.encode(prefix)
    sign = model.encode("☺")
    after = model.encode("☺" + suffix)[len(sign) :]
    expected = [pre, suf, *after, mid, *before] if suffix_first else [pre, *before, suf, *after, mid]
    assert infill_prompt(tokenizer, prefix, suffix, suffix_first) == [1, *expected]
    assert infill_prompt(tokenizer, prefix.encode(), suffix.encode(), suffix_first) == [1, *expected]
    hole = prompt_with_hole(tokenizer, f"{prefix}<FILL_ME>{suffix}", suffix_first)
    assert hole == [1, *expected]


def test_the_answer_ends_at_its_own_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.special_tokens["▁<EOT>"] in tokenizer.eog


def test_one_hole_at_a_time(tokenizer: Tokenizer) -> None:
    assert prompt_with_hole(tokenizer, "no hole") is None
    with pytest.raises(TokenizerError, match="2 times <FILL_ME>"):
        prompt_with_hole(tokenizer, "a<FILL_ME>b<FILL_ME>c")


def test_a_model_that_does_not_fill_in_reads_the_text_as_it_is(tmp_path: Path) -> None:
    tokens = [piece.replace("<PRE>", "<x>") for piece in PIECES]
    path = write_model(tmp_path / "plain.gguf", tokenizer__ggml__tokens=tokens)
    with Llama(str(path), verbose=False) as llm:
        assert llm.text_tokenizer is not None and not can_fill_in(llm.text_tokenizer)
        assert prompt_with_hole(llm.text_tokenizer, "a<FILL_ME>b") is None
        assert llm("a<FILL_ME>b", max_tokens=1)["usage"]["prompt_tokens"] > 5


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[Llama]:
    with Llama(str(write_model(tmp_path / "tiny.gguf")), verbose=False) as llm:
        yield llm


def test_a_hole_is_the_same_as_a_suffix(llm: Llama) -> None:
    options = {"max_tokens": 8, "temperature": 0.0}
    one = llm("the<FILL_ME>a", **options)
    two = llm("the", suffix="a", **options)
    assert one["choices"] == two["choices"] and one["usage"] == two["usage"]
    llm.spm_infill = True
    assert llm("the<FILL_ME>a", **options)["usage"] == two["usage"]


def test_the_suffix_can_come_first(llm: Llama) -> None:
    ids = infill_prompt(llm.text_tokenizer, "the", "a", suffix_first=True)  # type: ignore[arg-type]
    assert ids is not None and ids[:3] == [BOS, PRE, SUF] and ids[-2:] == [MID, PIECES.index("▁the")]


def test_the_command_fills_in(tmp_path: Path, run: Callable[..., Result], llm: Llama) -> None:
    model = ["complete", "-m", llm.model_path, "-n", "6", "--temp", "0"]
    middle = llm("the", suffix=" a\n", max_tokens=6, temperature=0.0)["choices"][0]["text"]
    assert run(*model, "-p", "the", "--suffix", r" a\n").out == f"the{middle} a\n\n"
    assert run(*model, "-p", "the", "--suffix", " a\n", "--no-display-prompt").out == f"{middle}\n"
    assert run(*model, "-p", "the<FILL_ME> a\\n", "--no-display-prompt").out == f"{middle}\n"
    assert run(*model, "-p", "the<FILL_ME> a\\n").out == f"the{middle} a\n\n"  # the hole is filled
    first = run(*model, "-p", "the", "--suffix", "a", "--spm-infill")
    assert first.code == 0
    refused = run(*model, "-p", "the", "--spm-infill")
    assert refused.code == 1 and "--spm-infill: give --suffix" in refused.err
    tokens = [piece.replace("<PRE>", "<x>") for piece in PIECES]
    plain = write_model(tmp_path / "plain.gguf", tokenizer__ggml__tokens=tokens)
    refused = run("complete", "-m", str(plain), "-p", "the", "--suffix", "a")
    assert refused.code == 1 and "not trained to fill in the middle" in refused.err
