"""engine/key_rounding.py: keys of 4 bits are rounded so that the model's queries see the least of it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import plan_harness
import pytest
from llama4_models import NAMES, llama4
from mllama_files import mllama
from plan_harness import Pages, Plan, random
from tiny_model import write_model

from pyllamacpu.engine.engine import Engine, scratch_bytes
from pyllamacpu.engine.key_rounding import Turns, key_statistics
from pyllamacpu.engine.page_files import PageFiles
from pyllamacpu.engine.page_keys import base_key
from pyllamacpu.errors import OptionError
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.graph.ops import Tensor
from pyllamacpu.graph.recorder import Recorder
from pyllamacpu.model.kv_space import KVSpace
from pyllamacpu.model.weights import padded_vector
from pyllamacpu.native import ffi, isa_selected, lib
from pyllamacpu.text.load import load_tokenizer

__all__ = ["llama4", "mllama"]

LOGITS = Path(__file__).parent / "fixtures" / "logits"
DIM = 64
SPACE = KVSpace("text", 1, 1, DIM, DIM)


def told(
    handle: object,
    moment: np.ndarray,
    mean: np.ndarray,
    layer: int = 0,
    head: int = 0,
    first: np.ndarray | None = None,
    stretch: np.ndarray | None = None,
) -> int:
    """Without a first key of its own: that of the mean, which moves nothing."""
    statistics = {
        "stretch": np.ones(len(mean)) if stretch is None else stretch,
        "moment": moment,
        "mean": mean,
        "first": mean if first is None else first,
    }
    arrays = {name: np.ascontiguousarray(x, np.float32) for name, x in statistics.items()}
    given = ffi.new("pl_key_statistics *", {k: ffi.from_buffer("float *", x) for k, x in arrays.items()})
    return int(lib.pl_cache_shape_keys(handle, layer, head, given))


def shifted(handle: object, mean: np.ndarray, first: np.ndarray, layer: int = 0, head: int = 0) -> int:
    arrays = [np.ascontiguousarray(x, np.float32) for x in (mean, first)]
    pointers = [ffi.from_buffer("float *", x) for x in arrays]
    return int(lib.pl_cache_shift_values(handle, layer, head, *pointers))


def test_statistics_are_averages_over_positions() -> None:
    dim, magnitude, frequencies = 10, 1.25, np.array([0.7, 0.09, 0.001], np.float32)
    plan = Recorder(())
    plan.rope_table(padded_vector("rope", frequencies), magnitude)
    q, k = random(1, 4, 9, dim).astype(np.float64), random(2, 2, 9, dim).astype(np.float64) + 1
    moments, means, spreads = key_statistics(q, k, Turns.below(500, dim, plan.ops[0]))

    def turned(x: np.ndarray, position: float) -> np.ndarray:
        out: np.ndarray = x.copy()
        for i, f in enumerate(frequencies.astype(np.float64)):
            cos, sin = magnitude * np.cos(f * position), magnitude * np.sin(f * position)
            out[..., 2 * i] = cos * x[..., 2 * i] - sin * x[..., 2 * i + 1]
            out[..., 2 * i + 1] = sin * x[..., 2 * i] + cos * x[..., 2 * i + 1]
        return out

    positions = np.geomspace(16, 500, 256)
    for head in range(2):
        rows = np.concatenate([turned(q[2 * head + i], p) for p in positions for i in range(2)])
        np.testing.assert_allclose(moments[head], rows.T @ rows / len(rows), atol=2e-6)
        keys = np.concatenate([turned(k[head], p) for p in positions])
        np.testing.assert_allclose(means[head], keys.mean(0), atol=1e-9)
        of_pairs = keys.var(0).reshape(-1, 2).mean(1)
        np.testing.assert_allclose(spreads[head], of_pairs, rtol=1e-9)


def scores_plan(kind: TensorType) -> Plan:
    """Attention of one head over keys and values given."""

    def record(plan: Recorder, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = plan.rope_store(q, k, v, None, SPACE, layer=0)
        return plan.attention(q, SPACE, layer=0, scale=0.125)

    return Plan(record, (DIM, DIM, DIM), spaces=(SPACE,), kv_type=kind)


def test_what_queries_see_of_rounding_is_a_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries in few directions, keys with much in common: as models have them."""
    directions = np.linalg.qr(random(3, DIM, DIM))[0] * (1.5 * 0.8 ** np.arange(DIM))
    q = (random(4, 300, DIM) @ directions.T).astype(np.float32)
    k = random(5, 300, DIM) + 2 * random(6, 1, DIM)
    v = random(7, 300, DIM)
    exact = scores_plan(TensorType.F32).run(q, k, v)
    nearest = scores_plan(TensorType.Q4_0).run(q, k, v)

    class ShapedPages(Pages):
        def __init__(self, space: KVSpace, kind: TensorType = TensorType.F32) -> None:
            super().__init__(space, kind)
            assert told(self.handle, q.T @ q / len(q), k.mean(0)) == 0

    zeros = np.zeros_like(v)
    only_values = scores_plan(TensorType.Q4_0).run(np.zeros_like(q), zeros, v)
    of_values = np.square(only_values - scores_plan(TensorType.F32).run(np.zeros_like(q), zeros, v)).mean()
    monkeypatch.setattr(plan_harness, "Pages", ShapedPages)
    shaped = scores_plan(TensorType.Q4_0).run(q, k, v)
    before, after = (np.square(x - exact).mean() - of_values for x in (nearest, shaped))
    assert after < before / 3


def test_the_first_key_is_kept_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where queries attend to the first position, its key's error is most of all; a key that is only near to
    the one that was foreseen gains as well.
    """
    sink = random(8, DIM)
    q = (random(4, 300, DIM) + 0.6 * sink).astype(np.float32)
    k, v = random(5, 300, DIM), np.zeros((300, DIM), np.float32)
    v[:, :1] = random(7, 300, 1)  # turned, all elements are the same: values have hardly an error
    k[0] = 0.5 * sink + 3 * k[0]
    exact = scores_plan(TensorType.F32).run(q, k, v)

    def error(first: np.ndarray) -> float:
        class ShapedPages(Pages):
            def __init__(self, space: KVSpace, kind: TensorType = TensorType.F32) -> None:
                super().__init__(space, kind)
                assert told(self.handle, q.T @ q / len(q), k[1:].mean(0), first=first) == 0

        monkeypatch.setattr(plan_harness, "Pages", ShapedPages)
        return float(np.square(scores_plan(TensorType.Q4_0).run(q, k, v) - exact).mean())

    unforeseen, same = error(k[1:].mean(0)), error(k[0])
    near = error(k[0] + 0.02 * random(9, DIM))
    assert same < 0.6 * unforeseen and near < 0.6 * unforeseen


def test_values_that_have_much_in_common_keep_what_they_differ_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """As models have them: values about a mean, and a first one near zero that most queries attend to."""
    q, k = np.zeros((300, DIM), np.float32), np.zeros((300, DIM), np.float32)
    v = random(5, 300, DIM) + 3 * random(6, 1, DIM)
    v[0] = 0.1 * random(7, DIM)
    q[:, 0] = k[0, 0] = 6  # half of the weight, when there are 90 others
    exact = scores_plan(TensorType.F32).run(q, k, v)
    before = scores_plan(TensorType.Q4_0).run(q, k, v)

    class ShiftedPages(Pages):
        def __init__(self, space: KVSpace, kind: TensorType = TensorType.F32) -> None:
            super().__init__(space, kind)
            assert shifted(self.handle, v[1:].mean(0), v[0]) == 0

    monkeypatch.setattr(plan_harness, "Pages", ShiftedPages)
    after = scores_plan(TensorType.Q4_0).run(q, k, v)
    assert np.square(after - exact).mean() < np.square(before - exact).mean() / 3
    # That one was foreseen. AVX-512 rounds weights times scales to 16 bits, and codes multiply the error.
    assert np.abs(after[0] - v[0]).max() < (1e-4 if isa_selected().startswith("avx512") else 1e-5)


def test_values_are_shifted_where_they_have_4_bits() -> None:
    handle = ffi.gc(lib.pl_cache_new(1, 2, DIM, DIM, TensorType.F16, TensorType.Q4_0), lib.pl_cache_free)
    none = np.zeros(DIM)
    assert lib.pl_cache_shift_bytes(handle) == 2 * DIM * 4
    assert lib.pl_cache_rounding_bytes(handle) == 0
    assert shifted(handle, none, none) == shifted(handle, none + 1, none, head=1) == 0
    assert shifted(handle, none + np.nan, none) == lib.PL_EUNSUPPORTED
    assert shifted(handle, none, none + np.inf) == lib.PL_EUNSUPPORTED
    assert shifted(handle, none, none, head=2) == shifted(handle, none, none, layer=1) == lib.PL_EINVAL
    other = ffi.gc(lib.pl_cache_new(1, 1, DIM, DIM, TensorType.Q4_0, TensorType.Q8_0), lib.pl_cache_free)
    assert lib.pl_cache_shift_bytes(other) == 0
    assert shifted(other, none, none) == lib.PL_EINVAL


def test_what_cannot_be_used_is_left_out() -> None:
    handle = ffi.gc(lib.pl_cache_new(1, 2, DIM, DIM, TensorType.Q4_0, TensorType.F16), lib.pl_cache_free)
    good, none = np.eye(DIM), np.zeros(DIM)
    assert told(handle, good, none, head=1) == 0
    assert told(handle, 0 * good, none) == lib.PL_EUNSUPPORTED
    assert told(handle, good * np.nan, none) == lib.PL_EUNSUPPORTED
    assert told(handle, good, none + np.inf) == lib.PL_EUNSUPPORTED
    assert told(handle, good, none, first=none + np.nan) == lib.PL_EUNSUPPORTED
    for stretch in (0.0, -1.0, 1e-45, np.inf, np.nan):
        assert told(handle, good, none, stretch=none + stretch) == lib.PL_EUNSUPPORTED
    assert told(handle, good, none, head=2) == told(handle, good, none, layer=1) == lib.PL_EINVAL
    for kind, dim in ((TensorType.Q8_0, DIM), (TensorType.Q4_0, 2 * lib.PL_PAGE_POSITIONS * 8)):
        other = ffi.gc(lib.pl_cache_new(1, 1, dim, dim, kind, TensorType.F16), lib.pl_cache_free)
        assert lib.pl_cache_rounding_bytes(other) == 0
        assert told(other, np.eye(dim), np.zeros(dim)) == lib.PL_EINVAL


@pytest.mark.parametrize("shape", ["head64", "head40", "gqa3"])
def test_a_model_has_one_rounding(shape: str) -> None:
    """Whatever the threads, the context and the steps."""
    engine = Engine.open(LOGITS / f"{shape}.gguf", n_ctx=512, n_threads=1, type_k="q4_0", type_v="q4_0")
    other = Engine.open(
        LOGITS / f"{shape}.gguf", n_ctx=64, n_threads=2, n_batch=16, type_k="q4_0", type_v="q4_0"
    )
    assert engine.cache.rounding == other.cache.rounding != b""
    stated = scratch_bytes(engine.file, engine.config, 512, n_threads=1, type_k="q4_0", type_v="q4_0")
    assert stated == engine.scratch_bytes
    assert engine.cache.rounding_bytes > 0
    engine.close()
    other.close()


def test_other_types_have_none(tmp_path: Path) -> None:
    engine = Engine.open(write_model(tmp_path / "m.gguf"), n_threads=1, type_k="q8_0", type_v="q8_0")
    assert engine.cache.rounding == b"" and engine.cache.rounding_bytes == 0
    engine.close()


def test_pages_of_another_rounding_are_not_read(tmp_path: Path) -> None:
    """From a saved state or the disk: other means were taken off their keys."""
    engine = Engine.open(LOGITS / "head64.gguf", n_ctx=128, n_threads=1, type_k="q4_0")
    files = PageFiles(tmp_path / "pages")
    key = base_key(engine.file, engine.plan, engine.cache, files)
    sequence, state = engine.sequence(), io.BytesIO()
    engine.eval(sequence, [1, 2, 3])
    sequence.save(state)
    sequence.load(io.BytesIO(state.getvalue()))
    engine.cache.rounding = b"another"
    assert base_key(engine.file, engine.plan, engine.cache, files) != key
    with pytest.raises(OptionError, match="another model or KV cache type"):
        sequence.load(io.BytesIO(state.getvalue()))
    engine.close()


def error_of(path: Path, texts: list[list[int]], cut: int) -> tuple[float, np.ndarray]:
    """How far logits of most tokens with 4-bit keys are from those with float32 ones, and the logits. (Where
    a router chooses another expert, they are far off whatever the error of a key is.)
    """
    found = []
    for kind, size in (("f32", len(texts[0])), ("q4_0", cut)):
        engine = Engine.open(path, n_ctx=256, n_threads=2, n_batch=64, type_k=kind, type_v="f32")
        parts = []
        for text in texts:
            sequence = engine.sequence()
            for i in range(0, len(text), size):
                parts.append(engine.eval(sequence, text[i : i + size], logits="all"))
            sequence.close()
        found.append(np.concatenate(parts).copy())
        engine.close()
    return float(np.median(np.square(found[1] - found[0]).mean(1))), found[1]


@pytest.mark.parametrize("name", ["mllama", *NAMES])
def test_every_architecture_is_read(
    name: str, mllama: Path, llama4: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers without rope, with norms behind it, in chunks, and beside layers that attend to images. Random
    weights have nothing that rounding could make use of, and lose nothing by it.
    """
    path = llama4.get(name, mllama)
    texts = np.random.default_rng(3).integers(0, 60, (4, 200)).tolist()
    error, logits = error_of(path, texts, 64)
    assert np.array_equal(logits, error_of(path, texts, 7)[1])
    monkeypatch.setattr("pyllamacpu.engine.engine.learn_rounding", lambda *_: None)
    assert 0 < error < 1.5 * error_of(path, texts, 64)[0]


def log_probabilities(engine: Engine, windows: list[list[int]]) -> np.ndarray:
    """(tokens, n_vocab), of the second half of each window."""
    parts = []
    for window in windows:
        sequence = engine.sequence()
        logits = engine.eval(sequence, window, logits="all")[len(window) // 2 :].astype(np.float64)
        sequence.close()
        logits -= logits.max(axis=1, keepdims=True)
        parts.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    return np.concatenate(parts)


def test_a_real_model_says_nearly_the_same(starter_model: Path) -> None:
    """On a text that nothing was learned from: 0.0084. With 64 ids spread over the vocabulary in place of a
    text, and no thought of the first key, it was 0.015.
    """
    found = []
    for kind in ("f16", "q4_0"):
        engine = Engine.open(starter_model, n_ctx=512, type_k=kind, type_v=kind)
        tokenizer = load_tokenizer(engine.file.metadata)
        assert tokenizer is not None
        ids = tokenizer.encode((LOGITS.parent / "smollm2" / "text.txt").read_bytes())
        found.append(log_probabilities(engine, [ids[:512], ids[512:1024]]))
        engine.close()
    exact, rounded = found
    divergence = (np.exp(exact) * (exact - rounded)).sum(axis=1).mean()
    assert 0 < divergence < 0.0115
