"""One size of the vocabulary (`Engine.n_vocab`): rows without a token are never an input or an answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_model import PIECES, write_model

from pyllamacpu import Llama
from pyllamacpu.engine.engine import Engine
from pyllamacpu.errors import OptionError, TokenizerError

N, PADDING = len(PIECES), 37
PROMPT = [1, 270, 271]


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("padded") / "tiny.gguf", padding=PADDING)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("plain") / "tiny.gguf")


@pytest.fixture(scope="module")
def no_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("padded") / "no-text.gguf", padding=PADDING, text=False)


def test_the_padding_of_the_test_would_win(no_text: Path) -> None:
    """Without a tokenizer every row is a token."""
    with Llama(str(no_text), n_ctx=64, n_threads=1) as llm:
        assert llm.n_vocab() == N + PADDING
        token = next(llm.generate(PROMPT, temp=0.0))
        assert token >= N
        assert int(llm.logits([*PROMPT, N + PADDING - 1])[-1].argmax()) >= N


def test_a_padded_model_answers_as_one_without_padding(padded: Path, plain: Path) -> None:
    answers = []
    for path in (padded, plain):
        with Llama(str(path), n_ctx=64, n_threads=1, seed=7) as llm:
            assert llm.n_vocab() == N and llm.logits(PROMPT).shape == (len(PROMPT), N)
            greedy = llm.create_completion(PROMPT, max_tokens=12, temperature=0.0)
            drawn = llm.create_completion(PROMPT, max_tokens=12, temperature=1.5, top_k=0, min_p=0.0)
            answers.append([greedy["choices"][0]["text"], drawn["choices"][0]["text"]])
    assert answers[0] == answers[1]


def test_log_probabilities_are_of_tokens(padded: Path, plain: Path) -> None:
    best = []
    for path in (padded, plain):
        with Llama(str(path), n_ctx=64, n_threads=1, logits_all=True) as llm:
            answer = llm.create_completion(PROMPT, max_tokens=5, temperature=0.0, logprobs=4)
            best.append(answer["choices"][0]["logprobs"]["top_logprobs"])
    assert best[0] == best[1] and best[0]


def test_processors_see_every_token_and_no_padding(padded: Path) -> None:
    seen = []

    def watch(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        seen.append(logits.shape)
        return logits

    with Llama(str(padded), n_ctx=64, n_threads=1) as llm:
        llm.create_completion(PROMPT, max_tokens=2, logits_processor=watch)
    assert seen[0] == (N,)


def test_an_id_without_a_token_is_refused(padded: Path) -> None:
    with Llama(str(padded), n_ctx=64, n_threads=1) as llm:
        for call in (llm.create_completion, llm.eval, llm.logits):
            with pytest.raises(TokenizerError, match=f"token id {N} "):
                call([1, N])
        with pytest.raises(OptionError, match="logit_bias"):
            llm.create_completion(PROMPT, logit_bias={N: 1.0})
    engine = Engine.open(padded, n_ctx=64, n_threads=1)
    with pytest.raises(TokenizerError, match=f"token id {N + 3} "):
        engine.eval(engine.sequence(), [1, N + 3])
    assert engine.n_vocab == N and engine.logits_buffer(2).shape[1] >= N + PADDING
    engine.close()
