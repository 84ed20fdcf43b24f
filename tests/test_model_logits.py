"""Logits of tiny random Llamas of every dense shape and tensor type, against Hugging Face transformers.

The fixtures (GGUF files, expected logits, and the versions of what made them) come from
tools/make_logits_fixtures.py. Differences are in units of the standard deviation of the expected logits.

Covers model/rope.py, model/kv_space.py, graph/recorder.py.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyllamacpu import Llama

FOLDER = Path(__file__).parent / "fixtures" / "logits"
FLOAT_LIMITS = {"F32": 2e-4, "F16": 2e-3, "BF16": 2e-3}  # largest difference
Q8_SLACK = 2.0  # times the difference that simulated 8-bit inputs of the matrices make
ALL_TYPES = {
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    *("TQ1_0", "TQ2_0", "MXFP4"),
}


@dataclass(frozen=True)
class Case:
    """One model and one input length."""

    name: str
    length: int

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token ids (length,), the positions kept (rows,), and their logits (rows, n_vocab)."""
        with np.load(FOLDER / f"{self.name}.npz") as data:
            ids, rows, logits = (data[f"{key}_{self.length}"] for key in ("ids", "rows", "logits"))
        return ids, rows, logits


def meta_of(name: str) -> dict[str, Any]:
    with np.load(FOLDER / f"{name}.npz") as data:
        meta: dict[str, Any] = json.loads(str(data["meta"]))
    return meta


NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))
META = {name: meta_of(name) for name in NAMES}
FLOATS = [name for name in NAMES if len(META[name]["types"]) == 1 and META[name]["types"][0] in FLOAT_LIMITS]


def cases(names: list[str]) -> list[Case]:
    return [Case(name, length) for name in names for length in META[name]["lengths"]]


def show(case: Case) -> str:
    return f"{case.name}-{case.length}"


@pytest.fixture(scope="module")
def models() -> Iterator[dict[str, Llama]]:
    """Models by fixture name, loaded when first asked for."""

    class Opened(dict[str, Llama]):
        def __missing__(self, name: str) -> Llama:
            with warnings.catch_warnings():  # of a context beyond the trained one: yarn4 shows what it scales
                warnings.simplefilter("ignore")
                self[name] = Llama(str(FOLDER / f"{name}.gguf"), kv_type="f32", n_ctx=1024, verbose=False)
            return self[name]

    opened = Opened()
    yield opened
    for model in opened.values():
        model.close()


def difference_of(model: Llama, case: Case) -> np.ndarray:
    """Computed minus expected logits (rows, n_vocab), in units of the expected spread."""
    ids, rows, expected = case.arrays()
    logits = model.logits([int(i) for i in ids])
    assert logits.shape == (case.length, expected.shape[1])
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    return (logits[rows].astype(np.float64) - expected) / float(expected.std())


@pytest.mark.parametrize("case", cases(FLOATS), ids=show)
def test_float_weights_agree_with_transformers(case: Case, models: dict[str, Llama]) -> None:
    difference = difference_of(models[case.name], case)
    worst = np.abs(difference).max()
    limit = FLOAT_LIMITS[META[case.name]["types"][0]]
    assert worst <= limit, f"off by {worst:.1e} of the spread, allowed {limit:.0e}"


@pytest.mark.parametrize("case", cases([n for n in NAMES if n not in FLOATS]), ids=show)
def test_quantized_weights_agree_with_their_decoded_values(case: Case, models: dict[str, Llama]) -> None:
    difference = difference_of(models[case.name], case)
    rms = np.sqrt((difference**2).mean())
    limit = Q8_SLACK * META[case.name]["q8_block32"]
    assert 0 < limit < 0.06
    assert rms <= limit, f"off by {rms:.2%} rms of the spread, allowed {limit:.2%}"


def test_there_is_a_fixture_for_every_tensor_type() -> None:
    assert {kind for meta in META.values() for kind in meta["types"]} == ALL_TYPES


def test_there_is_a_fixture_for_every_dense_shape() -> None:
    shapes = [meta["shape"] for meta in META.values()]
    groups = {s["n_heads"] // s["n_kv"] for s in shapes}
    heads = {s["head_dim"] or s["dim"] // s["n_heads"] for s in shapes}
    ropes = {(s["rope"].get("rope_type"), s["rope"].get("factor")) for s in shapes}
    assert groups >= {1, 3, 4, 6}
    assert heads >= {8, 16, 24, 40, 64, 128}
    assert ropes >= {(None, None), ("llama3", 8.0), ("llama3", 32.0), ("linear", 4.0), ("yarn", 4.0)}
    for key in ("tied", "attention_bias", "mlp_bias"):
        assert {s[key] for s in shapes} == {True, False}
    assert any(s["vocab"] % 16 for s in shapes)
    assert any(s["ffn"] % 32 for s in shapes)
    assert all(700 in META[name]["lengths"] for name in FLOATS)
