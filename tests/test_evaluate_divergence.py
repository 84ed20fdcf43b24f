"""KL divergence of two models side by side, from a recording and from a file, against numpy."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy_tiny import NumpyTiny, log_softmax
from tiny_model import BOS, PIECES, write_model

from pyllamacpu.cli.divergence_report import progress_row, report
from pyllamacpu.engine.engine import Engine
from pyllamacpu.errors import ModelError, OptionError
from pyllamacpu.evaluate import Divergence, divergence_from, kl_divergence, perplexity, record
from pyllamacpu.evaluate.divergence import percentiles
from pyllamacpu.evaluate.logits_file import LogitsFile, save_logits
from pyllamacpu.evaluate.windows import windows

TOKENS = np.random.default_rng(4).integers(6, len(PIECES), 700).tolist()
N_CTX, N = 64, 10
VOCAB = len(PIECES)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Engine]]:
    folder = tmp_path_factory.mktemp("divergence")
    paths = [write_model(folder / f"{seed}.gguf", seed=seed) for seed in (0, 1)]
    both = [Engine.open(path, n_ctx=256, n_threads=2, type_k="f32", type_v="f32") for path in paths]
    yield both[0], both[1]
    for engine in both:
        engine.close()


@pytest.fixture(scope="module")
def found(engines: tuple[Engine, Engine]) -> Divergence:
    return kl_divergence(*engines, TOKENS, n_ctx=N_CTX, bos=BOS)


@pytest.fixture(scope="module")
def exact() -> tuple[np.ndarray, np.ndarray]:
    """ln p under the base and the model: (windows, scored tokens, vocabulary)."""
    result = []
    for seed in (0, 1):
        model, parts = NumpyTiny(seed), []
        for i in range(N):
            window = TOKENS[i * N_CTX : (i + 1) * N_CTX]
            parts.append(log_softmax(model.run([BOS, *window[1:]])[0])[N_CTX // 2 : -1])
        result.append(np.array(parts))
    return result[0], result[1]


def test_every_token_as_in_numpy(found: Divergence, exact: tuple[np.ndarray, np.ndarray]) -> None:
    base, model = exact
    targets = np.array(TOKENS[: N * N_CTX]).reshape(N, N_CTX)[:, N_CTX // 2 + 1 :]
    picked = [np.take_along_axis(a, targets[..., None], -1).ravel() for a in exact]
    kld = (np.exp(base) * (base - model)).sum(-1).ravel()
    same = (base.argmax(-1) == model.argmax(-1)).ravel()
    assert found.kld == pytest.approx(kld, rel=1e-4)
    assert found.nll_base == pytest.approx(-picked[0], rel=1e-4, abs=1e-4)
    assert found.nll == pytest.approx(-picked[1], rel=1e-4, abs=1e-4)
    assert np.array_equal(found.same_top, same)
    assert found.p_difference == pytest.approx(np.exp(picked[1]) - np.exp(picked[0]), abs=1e-5)


def test_statistics_by_their_definitions(found: Divergence) -> None:
    """llama-perplexity's formulas, which work with sums."""
    n = found.kld.size
    assert n == N * (N_CTX // 2 - 1)

    def uncertain(x: np.ndarray) -> tuple[float, float]:
        return float(x.mean()), float(np.sqrt(((x**2).mean() - x.mean() ** 2) / (n - 1)))

    assert tuple(vars(found.mean_kld).values()) == pytest.approx(uncertain(found.kld))
    a, b = uncertain(found.nll), uncertain(found.nll_base)
    cov = ((found.nll * found.nll_base).mean() - a[0] * b[0]) / (n - 1)
    ratio_error = np.sqrt(a[1] ** 2 + b[1] ** 2 - 2 * cov)
    assert tuple(vars(found.ln_ppl_ratio).values()) == pytest.approx((a[0] - b[0], ratio_error))
    ppl, base = np.exp(a[0]), np.exp(b[0])
    error = np.sqrt((ppl * a[1]) ** 2 + (base * b[1]) ** 2 - 2 * ppl * base * cov)
    assert tuple(vars(found.ppl_difference).values()) == pytest.approx((ppl - base, error))
    assert found.correlation == pytest.approx(np.corrcoef(found.nll, found.nll_base)[0, 1], rel=1e-6)
    squares = uncertain(found.p_difference**2)
    rms = np.sqrt(squares[0])
    assert tuple(vars(found.p_difference_rms).values()) == pytest.approx((rms, 0.5 / rms * squares[1]))
    p = found.same_top.mean()
    assert tuple(vars(found.same_top_share).values()) == pytest.approx((p, np.sqrt(p * (1 - p) / (n - 1))))


def test_perplexities_are_those_of_each_model_alone(
    found: Divergence, engines: tuple[Engine, Engine]
) -> None:
    alone = [perplexity(engine, TOKENS, n_ctx=N_CTX, bos=BOS) for engine in engines]
    assert (found.ppl_base, found.ppl) == (alone[0].ppl, alone[1].ppl)


def test_a_model_does_not_diverge_from_itself(engines: tuple[Engine, Engine]) -> None:
    same = kl_divergence(engines[0], engines[0], TOKENS, n_ctx=N_CTX)
    assert same.mean_kld.value == 0.0 and same.same_top.all() and not same.p_difference.any()
    assert same.ln_ppl_ratio.value == 0.0
    assert "Mean    KLD:   0.000000" in report(same)


def test_a_recording_gives_the_same_bits(found: Divergence, engines: tuple[Engine, Engine]) -> None:
    recorded = record(engines[0], TOKENS, n_ctx=N_CTX, bos=BOS)
    again = divergence_from(recorded, engines[1])
    assert recorded.n_bytes >= found.kld.size * VOCAB * 4
    for name in ("kld", "nll", "nll_base", "same_top"):
        assert np.array_equal(getattr(again, name), getattr(found, name))


def test_small_steps_give_the_same_bits(
    found: Divergence, engines: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(windows.__globals__, "LOGIT_BYTES", 7 * 4 * VOCAB)
    small = Engine.open(engines[1].file.paths[0], n_ctx=64, n_batch=20, type_k="f32", type_v="f32")
    again = kl_divergence(engines[0], small, TOKENS, n_ctx=N_CTX, bos=BOS)
    assert np.array_equal(again.kld, found.kld)
    monkeypatch.undo()
    with pytest.raises(OptionError, match="n_batch is 20"):
        divergence_from(record(engines[0], TOKENS, n_ctx=N_CTX), small)
    small.close()


def test_other_vocabularies_are_refused(engines: tuple[Engine, Engine], tmp_path: Path) -> None:
    path = write_model(tmp_path / "other.gguf")
    data = path.read_bytes()
    path.write_bytes(data.replace("▁world".encode(), "▁wOrld".encode()).replace(b"world", b"wOrld"))
    other = Engine.open(path)
    with pytest.raises(ModelError, match="different tokens"):
        kl_divergence(engines[0], other, TOKENS, n_ctx=N_CTX)
    other.close()
    wide = Path(__file__).parent / "fixtures" / "logits" / "gqa4.gguf"
    third = Engine.open(wide)
    assert third.n_vocab != VOCAB
    with pytest.raises(ModelError, match=rf"vocabulary of {third.n_vocab} tokens and .* one of {VOCAB}"):
        kl_divergence(engines[0], third, TOKENS, n_ctx=N_CTX)
    with pytest.raises(ModelError, match="cannot be compared"):
        divergence_from(record(engines[0], TOKENS, n_ctx=N_CTX), third)
    third.close()


def test_progress_and_reports(found: Divergence, engines: tuple[Engine, Engine]) -> None:
    seen: list[tuple[int, int, float]] = []
    kl_divergence(
        *engines,
        TOKENS,
        n_ctx=N_CTX,
        bos=BOS,
        on_window=lambda done, total, d: seen.append((done, total, d.mean_kld.value)),
    )
    assert [state[:2] for state in seen] == [(i, N) for i in range(1, N + 1)]
    assert seen[-1][2] == found.mean_kld.value
    text = report(found)
    for line in ("Mean PPL(Q)", "Mean    KLD:", "99.9%   KLD:", "Median  KLD:", " 0.1%   Δp:", "Same top p:"):
        assert line in text
    assert f"{found.mean_kld.value:10.5f}" in progress_row(10, found)
    row = json.loads(json.dumps(found.row()))
    assert row["kld"] == found.mean_kld.value and row["same_top"] == found.same_top_share.value


def test_percentiles_interpolate() -> None:
    values = np.array([0.0, 1.0, 2.0, 10.0])
    assert percentiles(values, (50.0, 99.0)) == {
        "max": 10.0,
        "50": 1.5,
        "99": pytest.approx(9.76),
        "min": 0.0,
    }


# Files of logits


def test_a_file_of_logits_has_llama_perplexitys_form(engines: tuple[Engine, Engine], tmp_path: Path) -> None:
    cut = windows(TOKENS, N_CTX, bos=BOS, n_chunks=3)
    result = save_logits(tmp_path / "base.bin", engines[0], cut)
    assert result.nll == perplexity(engines[0], cut).nll
    data = (tmp_path / "base.bin").read_bytes()
    assert data[:8] == b"_logits_"
    assert struct.unpack("<Iii", data[8:20]) == (N_CTX, VOCAB, 3)
    assert np.frombuffer(data, "<i4", 3 * N_CTX, 20).tolist() == TOKENS[: 3 * N_CTX]
    width = (VOCAB + 1) // 2 * 2 + 4
    rows = np.frombuffer(data, "<u2", offset=20 + 4 * 3 * N_CTX).reshape(3, N_CTX // 2 - 1, width)
    scale, low = np.ascontiguousarray(rows[..., :4]).view("<f4")[..., :1], rows[..., 2:4].copy().view("<f4")
    engine = engines[0]
    sequence = engine.sequence()
    logits = engine.eval(sequence, [BOS, *TOKENS[1:N_CTX]], logits="all")[N_CTX // 2 : -1]
    want = log_softmax(logits.astype(np.float64))
    want = np.maximum(want, want.max(-1, keepdims=True) - 16)
    assert (scale * rows[..., 4 : 4 + VOCAB] + low)[0] == pytest.approx(want, abs=16 / 65535)
    assert [path.name for path in tmp_path.iterdir()] == ["base.bin"]


def test_divergence_from_a_file(found: Divergence, engines: tuple[Engine, Engine], tmp_path: Path) -> None:
    save_logits(tmp_path / "base.bin", engines[0], windows(TOKENS, N_CTX, bos=BOS))
    stored = LogitsFile.open(tmp_path / "base.bin")
    again = stored.divergence(engines[1], BOS)
    assert np.array_equal(again.nll, found.nll)
    assert again.mean_kld.value == pytest.approx(found.mean_kld.value, rel=2e-3)  # its 16 bits
    assert again.same_top.mean() == pytest.approx(found.same_top.mean(), abs=0.01)
    assert again.nll_base == pytest.approx(np.minimum(found.nll_base, again.nll_base + 16 / 65535), abs=3e-4)


@pytest.mark.parametrize("cut", [0, 5, 19, 200, -2])
def test_damaged_files_of_logits(engines: tuple[Engine, Engine], tmp_path: Path, cut: int) -> None:
    path = tmp_path / "base.bin"
    save_logits(path, engines[0], windows(TOKENS, N_CTX, n_chunks=1))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(OptionError, match=r"is not a file of logits|damaged or incomplete"):
        LogitsFile.open(path)
    with pytest.raises(OptionError, match="no such file"):
        LogitsFile.open(tmp_path / "none.bin")


def test_sizes_in_a_file_are_not_believed(tmp_path: Path) -> None:
    for n_ctx, n_vocab, n in ((1 << 31, 1 << 30, 1 << 30), (64, -5, 3), (64, 300, -1), (2, 300, 1)):
        path = tmp_path / "huge.bin"
        path.write_bytes(struct.pack("<8sIii", b"_logits_", n_ctx, n_vocab, n) + bytes(1000))
        with pytest.raises(OptionError, match="damaged"):
            LogitsFile.open(path)


@pytest.mark.parametrize("token", [-1, -(1 << 31), VOCAB, (1 << 31) - 1])
def test_token_ids_in_a_file_are_checked(engines: tuple[Engine, Engine], tmp_path: Path, token: int) -> None:
    """They choose the probabilities that the perplexity is made of: -1 chose the last one, in silence."""
    path = tmp_path / "base.bin"
    save_logits(path, engines[0], windows(TOKENS, N_CTX, n_chunks=1))
    content = bytearray(path.read_bytes())
    struct.pack_into("<i", content, 20 + 4 * (N_CTX - 1), token)
    path.write_bytes(content)
    with pytest.raises(OptionError, match="token ids outside"):
        LogitsFile.open(path)


def test_rows_that_hold_no_numbers_are_refused(engines: tuple[Engine, Engine], tmp_path: Path) -> None:
    path = tmp_path / "base.bin"
    save_logits(path, engines[0], windows(TOKENS, N_CTX, n_chunks=1))
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, 20 + 4 * N_CTX, float("nan"))
    path.write_bytes(content)
    with pytest.raises(OptionError, match="a row holds no numbers"):
        LogitsFile.open(path).divergence(engines[1], BOS)


def test_a_file_of_another_model_is_refused(engines: tuple[Engine, Engine], tmp_path: Path) -> None:
    save_logits(tmp_path / "base.bin", engines[0], windows(TOKENS, N_CTX, n_chunks=1))
    other = Engine.open(Path(__file__).parent / "fixtures" / "logits" / "gqa4.gguf")
    with pytest.raises(ModelError, match="vocabulary"):
        LogitsFile.open(tmp_path / "base.bin").divergence(other, None)
    other.close()
