"""Perplexity: the windows, what is scored, and the numbers, against a model in numpy.

Covers evaluate/perplexity.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy_tiny import NumpyTiny, log_softmax
from tiny_model import BOS, PIECES, write_model

from pyllamacpu.engine.engine import Engine
from pyllamacpu.errors import ContextError, ModelError, OptionError
from pyllamacpu.evaluate import perplexity, windows
from pyllamacpu.evaluate.statistics import mean, share, wilson
from pyllamacpu.evaluate.windows import strided_width
from pyllamacpu.gguf.reader import GGUFFile

TINY = NumpyTiny()
TOKENS = np.random.default_rng(4).integers(6, len(PIECES), 1000).tolist()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("evaluate") / "tiny.gguf", n_ctx=1024)


@pytest.fixture(scope="module")
def engine(path: Path) -> Iterator[Engine]:
    engine = Engine.open(path, n_ctx=1024, n_batch=256, n_threads=2, type_k="f32", type_v="f32")
    yield engine
    engine.close()


def oracle(tokens: list[int], first: int, bos: int | None) -> np.ndarray:
    """Minus ln p of the tokens behind `first` of one window."""
    inputs = tokens if bos is None else [bos, *tokens[1:]]
    log_p = log_softmax(TINY.run(inputs)[0])
    return -log_p[np.arange(first, len(tokens) - 1), tokens[first + 1 :]]


@pytest.mark.parametrize("bos", [None, BOS])
@pytest.mark.parametrize("n_ctx", [4, 33, 64, 300])
def test_the_second_half_of_each_window_is_scored(engine: Engine, n_ctx: int, bos: int | None) -> None:
    n = min(len(TOKENS) // n_ctx, 16)
    parts = [oracle(TOKENS[i * n_ctx : (i + 1) * n_ctx], n_ctx // 2, bos) for i in range(n)]
    want = np.concatenate(parts)
    found = perplexity(engine, TOKENS, n_ctx=n_ctx, bos=bos, n_chunks=n)
    assert (found.n_chunks, found.n_scored, found.n_tokens) == (n, want.size, n * n_ctx)
    assert found.nll.value == pytest.approx(want.mean(), rel=1e-5)
    assert found.nll.error == pytest.approx(math.sqrt(want.var() / (want.size - 1)), rel=1e-4)
    assert found.ppl.value == pytest.approx(math.exp(want.mean()), rel=1e-4)
    assert found.ppl.error == pytest.approx(found.ppl.value * found.nll.error)


@pytest.mark.parametrize("n_ctx, stride", [(200, 64), (100, 99), (256, 1)])
def test_overlapping_windows(engine: Engine, n_ctx: int, stride: int) -> None:
    width = strided_width(n_ctx, stride)
    assert width == {(200, 64): 256, (100, 99): 256, (256, 1): 256}[n_ctx, stride]
    n = min(-(-(len(TOKENS) - width) // stride), 5)
    starts = [i * stride for i in range(n)]
    want = np.concatenate([oracle(TOKENS[s : s + width], width - stride - 1, None) for s in starts])
    found = perplexity(engine, TOKENS, n_ctx=n_ctx, bos=BOS, stride=stride, n_chunks=5)
    assert (found.n_chunks, found.n_scored) == (n, n * stride)
    assert found.nll.value == pytest.approx(want.mean(), rel=1e-5)


def test_all_overlapping_windows_together_score_to_the_end() -> None:
    cut = windows(TOKENS, 200, stride=50)
    width = strided_width(200, 50)
    assert cut.n_windows == -(-(len(TOKENS) - width) // 50)
    assert cut.targets[0].tolist() == TOKENS[width - 50 : width]
    assert cut.targets[1].tolist() == TOKENS[width : width + 50]


@pytest.mark.parametrize("n_batch, threads", [(16, 1), (100, 3), (512, 2)])
def test_the_size_of_steps_and_threads_change_no_bit(
    path: Path, engine: Engine, n_batch: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = perplexity(engine, TOKENS, n_ctx=64, bos=BOS)
    other = Engine.open(path, n_ctx=512, n_batch=n_batch, n_threads=threads, type_k="f32", type_v="f32")
    monkeypatch.setitem(windows.__globals__, "LOGIT_BYTES", 5 * 4 * len(PIECES))
    found = perplexity(other, TOKENS, n_ctx=64, bos=BOS)
    other.close()
    assert found.nll == want.nll


def test_chunks_bound_the_windows(engine: Engine) -> None:
    seen: list[tuple[int, int, float]] = []
    found = perplexity(engine, TOKENS, n_ctx=64, n_chunks=3, on_window=lambda *state: seen.append(state))
    assert found.n_chunks == 3
    assert [state[:2] for state in seen] == [(1, 3), (2, 3), (3, 3)]
    assert seen[-1][2] == pytest.approx(found.ppl.value)
    assert perplexity(engine, TOKENS, n_ctx=64, n_chunks=99).n_chunks == 15


def test_a_text_too_short_says_what_it_takes(engine: Engine) -> None:
    with pytest.raises(ContextError, match=r"has 40 tokens and a window takes 64"):
        perplexity(engine, TOKENS[:40], n_ctx=64)
    with pytest.raises(ContextError, match=r"has 40 tokens and a window takes 257"):
        perplexity(engine, TOKENS[:40], n_ctx=100, stride=10)
    assert perplexity(engine, TOKENS[:64], n_ctx=64).n_chunks == 1


def test_windows_longer_than_the_model_are_refused(engine: Engine, path: Path) -> None:
    with pytest.raises(ContextError, match="trained with 1024"):
        perplexity(engine, TOKENS * 3, n_ctx=2000)
    small = Engine.open(path, n_ctx=32)
    with pytest.raises(ContextError, match="room for 32"):
        perplexity(small, TOKENS, n_ctx=64)
    small.close()


@pytest.mark.parametrize(
    "how", [{"n_ctx": 3}, {"n_chunks": 0}, {"n_chunks": -2}, {"stride": 512}, {"stride": -1}]
)
def test_impossible_sizes(how: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        windows(TOKENS, **how)


def test_damaged_weights_are_told(tmp_path: Path) -> None:
    broken = write_model(tmp_path / "nan.gguf")
    with GGUFFile.open(broken) as file:
        start = broken.read_bytes().index(file.data("output.weight")[:64].tobytes())
    with open(broken, "r+b") as out:
        out.seek(start)
        out.write(np.full(4, np.nan, np.float32).tobytes())
    engine = Engine.open(broken)
    with pytest.raises(ModelError, match="not finite"):
        perplexity(engine, TOKENS, n_ctx=64)
    engine.close()


def test_everything_told_is_json(engine: Engine) -> None:
    row = perplexity(engine, TOKENS, n_ctx=64).row()
    again = json.loads(json.dumps(row))
    assert again == row
    assert {"ppl", "ppl_error", "nll", "n_tokens", "n_chunks", "tokens_per_second"} <= set(row)


# Statistics


def test_errors_of_means_and_shares() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, 500)
    estimate = mean(values)
    assert estimate.error == pytest.approx(values.std(ddof=1) / math.sqrt(500), rel=1e-12)
    assert mean(values[:10]).error == 0.0
    assert share(30, 101).error == pytest.approx(math.sqrt(30 / 101 * 71 / 101 / 100))
    assert estimate.exp().error == pytest.approx(math.exp(estimate.value) * estimate.error)
    assert estimate.root().error == pytest.approx(0.5 / math.sqrt(estimate.value) * estimate.error)


@pytest.mark.parametrize(
    "hits, n, low, high", [(10, 10, 0.722467, 1.0), (0, 10, 0.0, 0.277533), (81, 263, 0.255289, 0.366257)]
)
def test_wilson_intervals(hits: int, n: int, low: float, high: float) -> None:
    """The last one is an example of Newcombe, Statistics in Medicine 17 (1998), table I."""
    assert wilson(hits, n) == pytest.approx((low, high), abs=1e-4)


# The starter model


def test_starter_model_as_in_float32(starter_model: Path) -> None:
    """Float32 arithmetic gives 26.209 (tools/make_smollm2_fixtures.py); 8-bit activations add 0.1 %."""
    from pyllamacpu.text import load_tokenizer

    folder = Path(__file__).parent / "fixtures" / "smollm2"
    engine = Engine.open(starter_model, n_ctx=512)
    tokenizer = load_tokenizer(engine.file.metadata)
    assert tokenizer is not None and not tokenizer.add_bos
    found = perplexity(engine, tokenizer.encode((folder / "text.txt").read_bytes()), n_ctx=512)
    engine.close()
    want = json.loads((folder / "expected.json").read_text())["perplexity"]["perplexity"]
    assert (found.n_chunks, found.n_scored) == (7, 1785)
    assert found.ppl.value == pytest.approx(want, rel=0.01)
