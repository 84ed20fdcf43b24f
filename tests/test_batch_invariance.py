"""Promise 2: a token's logits have the same bits whatever surrounds them. Equality, never closeness."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pyllamacpu.engine.engine import Engine, Entry

LOGITS = Path(__file__).parent / "fixtures" / "logits"
SHAPES = [
    "gqa3",
    "head40",
    "f16_gqa",
    "bf16_biases",
    "mixed_q4_k_m",
    "mixed_q4_1",
    "q8_0",
    "q6_k",
    "iq2_xs",
    "mxfp4",
]
KV_TYPES = ["f32", "f16", "bf16", "q8_0", "q4_0"]
LENGTH = 700


def prompt(engine: Engine, n: int = LENGTH, seed: int = 7) -> list[int]:
    return np.random.default_rng(seed).integers(0, engine.n_vocab, n).tolist()


def logits(engine: Engine, tokens: list[int], cut: int = 0) -> npt.NDArray[np.float32]:
    """Logits of every token of a fresh sequence, evaluated `cut` tokens at a time (0: as many as a step
    takes).
    """
    sequence = engine.sequence()
    cut = cut or len(tokens)
    rows = [
        engine.eval(sequence, tokens[i : i + cut], logits="all").copy() for i in range(0, len(tokens), cut)
    ]
    sequence.close()
    return np.concatenate(rows)


def assert_same_bits(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> None:
    assert a.shape == b.shape
    assert np.all(np.isfinite(a))
    assert np.array_equal(np.ascontiguousarray(a).view(np.uint32), np.ascontiguousarray(b).view(np.uint32))


def opened(name: str, **options: object) -> Engine:
    return Engine.open(LOGITS / f"{name}.gguf", **{"n_ctx": 1024, "n_batch": 256, "n_threads": 2} | options)


@pytest.fixture(scope="module", params=SHAPES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """One engine for all tests of a shape: what ran in it before must change nothing either."""
    engine = opened(request.param)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def whole(engine: Engine) -> npt.NDArray[np.float32]:
    return logits(engine, prompt(engine))


@pytest.mark.parametrize("cut", [1, 3, 64])
def test_cutting_the_prompt_changes_nothing(engine: Engine, whole: npt.NDArray[np.float32], cut: int) -> None:
    assert_same_bits(logits(engine, prompt(engine), cut), whole)


def test_the_size_of_a_step_and_the_number_of_threads_change_nothing(
    engine: Engine, whole: npt.NDArray[np.float32], request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["engine"]
    for n_threads, n_batch in ((1, 256), (2, 17), (3, 700)):
        other = opened(name, n_threads=n_threads, n_batch=n_batch)
        assert_same_bits(logits(other, prompt(other)), whole)
        other.close()


def test_seven_other_sequences_change_nothing(engine: Engine, whole: npt.NDArray[np.float32]) -> None:
    """The prompt's last tokens one by one, in steps with seven sequences of other lengths, whose bits do not
    change either.
    """
    tokens, split = prompt(engine), LENGTH - 5
    others = [prompt(engine, 40 * i + 1, seed=i) for i in range(1, 8)]
    sequences = [engine.sequence() for _ in range(8)]
    engine.eval(sequences[3], tokens[:split], logits="none")
    for i, other in enumerate(others):
        engine.eval(sequences[i + (i >= 3)], other[:-1], logits="none")
    for step, token in enumerate(tokens[split:]):
        extra = [
            Entry(s, [other[-1]] * (1 + step))
            for s, other in zip(sequences[:3] + sequences[4:], others, strict=True)
        ]
        rows = engine.step([*extra[:3], Entry(sequences[3], [token]), *extra[3:]])
        assert_same_bits(rows[3:4], whole[split + step : split + step + 1])
        if step == 0:
            for row, other in zip(np.delete(rows, 3, axis=0), others, strict=True):
                assert_same_bits(row[None], logits(engine, other)[-1:])


def test_prompts_of_many_sequences_in_one_step_change_nothing(
    engine: Engine, whole: npt.NDArray[np.float32]
) -> None:
    tokens = prompt(engine)
    mixed = engine.step(
        [
            Entry(engine.sequence(), tokens[:90], "all"),
            Entry(engine.sequence(), tokens[:1]),
            Entry(engine.sequence(), tokens[:60], "all"),
        ]
    )
    assert_same_bits(mixed[:90], whole[:90])
    assert_same_bits(mixed[90:91], whole[:1])
    assert_same_bits(mixed[91:], whole[:60])


@pytest.mark.parametrize("kept", [1, 32, 100, 512, 640])
def test_a_reused_prefix_changes_nothing(engine: Engine, whole: npt.NDArray[np.float32], kept: int) -> None:
    """Cut back and forked sequences: pages shared, partly filled, and written again."""
    tokens = prompt(engine)
    sequence = engine.sequence()
    engine.eval(sequence, tokens[:kept] + prompt(engine, 50, seed=99), logits="none")
    sequence.truncate(kept)
    fork = sequence.fork()
    engine.eval(fork, prompt(engine, 20, seed=98), logits="none")  # must not disturb the shared page
    assert_same_bits(engine.eval(sequence, tokens[kept:], logits="all"), whole[kept:])
    fork.truncate(kept)
    assert_same_bits(engine.eval(fork, tokens[kept:], logits="all"), whole[kept:])


@pytest.mark.parametrize("kv", KV_TYPES)
def test_every_cache_type_is_invariant(kv: str) -> None:
    engine = opened("gqa4", type_k=kv, type_v=kv)
    tokens = prompt(engine)
    whole = logits(engine, tokens)
    for cut in (1, 3, 64):
        assert_same_bits(logits(engine, tokens, cut), whole)
    sequence = engine.sequence()
    engine.eval(sequence, tokens[:333], logits="none")
    restored = engine.sequence()
    saved = io.BytesIO()
    sequence.save(saved)
    saved.seek(0)
    restored.load(saved)
    assert restored.tokens == tokens[:333]
    assert_same_bits(engine.eval(restored, tokens[333:], logits="all"), whole[333:])
    engine.close()
