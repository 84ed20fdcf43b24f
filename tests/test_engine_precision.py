"""`precision="exact"`: activations in 16 bits, against Hugging Face's logits of the same quantized weights.

Fixtures: tests/test_model_logits.py. Covers engine/step_plans.py.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from llama4_vision_models import converted, difference, expected, opened
from test_model_logits import FOLDER, NAMES, cases
from tiny_model import write_model

from pyllamacpu import Llama
from pyllamacpu.cli.bench import bench
from pyllamacpu.cli.perplexity import perplexity
from pyllamacpu.cli.quantize import quantize
from pyllamacpu.engine.engine import Engine
from pyllamacpu.engine.page_files import PageFiles
from pyllamacpu.engine.page_keys import base_key
from pyllamacpu.errors import ModelError, OptionError

Floats = npt.NDArray[np.float32]
QUANTIZED = [
    name for name in NAMES if any(name.startswith(kind) for kind in ("iq4", "mixed", "q", "tq", "mxfp"))
]
LIMIT = 1e-3  # of the spread of the logits


def logits(name: str, precision: str, ids: list[int], cut: int = 1024) -> Floats:
    path = FOLDER / f"{name}.gguf"
    engine = Engine.open(path, n_ctx=1024, n_threads=2, type_k="f32", type_v="f32", precision=precision)
    try:
        sequence = engine.sequence()
        parts = [engine.eval(sequence, ids[i : i + cut], logits="all") for i in range(0, len(ids), cut)]
        return np.concatenate(parts)
    finally:
        engine.close()


@pytest.mark.parametrize("name", QUANTIZED)
def test_logits_are_those_of_the_weights(name: str) -> None:
    """Where 8 bits are some percent of the spread away."""
    ids, rows, expected = cases([name])[-1].arrays()
    worst = {
        precision: np.abs(logits(name, precision, ids.tolist())[rows] - expected).max() / expected.std()
        for precision in ("fast", "exact")
    }
    assert worst["exact"] < LIMIT and worst["exact"] < 0.05 * worst["fast"]


@pytest.mark.parametrize("name", QUANTIZED)
def test_bits_do_not_depend_on_how_a_prompt_is_cut(name: str) -> None:
    """Of each type: one token has a kernel of its own for chunks all of whose blocks have a residual."""
    ids, _, _ = cases([name])[-1].arrays()
    whole = logits(name, "exact", ids.tolist())
    for cut in (1, 3, 7):
        np.testing.assert_array_equal(logits(name, "exact", ids.tolist(), cut), whole)


def test_an_unknown_precision_is_an_error(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny.gguf")
    for wrong in ("best", 3, None):
        with pytest.raises(OptionError, match="precision"):
            Llama(str(path), precision=wrong, verbose=False)  # type: ignore[arg-type]


def test_pages_of_other_precision_have_other_keys(tmp_path: Path) -> None:
    path, keys = write_model(tmp_path / "tiny.gguf"), set()
    for precision in ("fast", "exact"):
        engine = Engine.open(path, precision=precision)
        keys.add(
            base_key(engine.file, engine.plan, engine.cache, PageFiles(tmp_path / "pages"), engine.precision)
        )
        engine.close()
    assert len(keys) == 2


def test_saved_states_are_for_the_same_precision(tmp_path: Path) -> None:
    """Keys and values of 8 bits are not those of 16. And 4-bit ones were not always rotated."""
    path = write_model(tmp_path / "tiny.gguf")
    with (
        Llama(str(path), verbose=False) as fast,
        Llama(str(path), precision="exact", verbose=False) as exact,
        Llama(str(path), type_k="q4_0", verbose=False) as rotated,
    ):
        for llm in (fast, exact, rotated):
            llm.eval([1, 6, 9])
            llm.load_state(llm.save_state())
        for llm, other in ((fast, exact), (exact, fast)):
            with pytest.raises(ModelError, match="precision"):
                llm.load_state(other.save_state())
        state = rotated.save_state()
        before = tuple("q4_0" if part == "rotated q4_0" else part for part in state.model)
        with pytest.raises(ModelError, match="cache type"):
            rotated.load_state(replace(state, model=before))
        assert fast.save_state().model[-2:] == ("f16", "f16")  # what earlier versions have written


def test_exact_keeps_keys_and_values_in_float32_unless_told_otherwise(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny.gguf")

    def types(**options: Any) -> tuple[str, str]:
        with Llama(str(path), verbose=False, **options) as llm:
            engine = llm.engine
            return engine.cache.type_k.name, engine.cache.type_v.name

    assert types() == types(precision="exact", kv_type="f16") == ("F16", "F16")
    assert types(precision="exact") == ("F32", "F32")
    assert types(precision="exact", type_v="q8_0") == ("F32", "Q8_0")
    engine = Engine.open(path, precision="exact")
    assert engine.cache.type_k.name == engine.cache.type_v.name == "F32"
    engine.close()


def test_bench_and_perplexity_name_the_types_that_the_precision_brings(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny.gguf")
    given = ["-m", str(path), "-p", "4", "-n", "0", "-r", "1", "--no-limits", "--precision", "fast,exact"]
    done = CliRunner().invoke(bench, [*given, "-o", "json"])
    assert done.exit_code == 0, done.output
    shown = [(row["precision"], row["type_k"], row["type_v"]) for row in json.loads(done.stdout)]
    assert shown == [("fast", "f16", "f16"), ("exact", "f32", "f32")]
    text = tmp_path / "text.txt"
    text.write_text("once upon a time " * 20)
    options = ["-m", str(path), "-f", str(text), "-c", "16", "--precision", "exact", "-o", "json"]
    done = CliRunner().invoke(perplexity, options)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["precision"], found["type_k"], found["type_v"]) == ("exact", "f32", "f32")
    assert "exact, f32 and f32 keys and values" in done.stderr


def test_a_pickled_model_keeps_its_precision(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny.gguf")
    with Llama(str(path), precision="exact", verbose=False) as llm, pickle.loads(pickle.dumps(llm)) as other:
        assert other.engine.precision == "exact"


def test_a_quantized_tower_is_exact_too(tmp_path: Path) -> None:
    """Against the same weights in float32."""
    small, same = tmp_path / "small.gguf", tmp_path / "same.gguf"
    path = converted("hf", tmp_path)
    for source, target, kind in (
        (path.with_name(f"mmproj-{path.name}"), small, "Q8_0"),
        (small, same, "F32"),
    ):
        done = CliRunner().invoke(quantize, [str(source), str(target), kind, "--allow-requantize"])
        assert done.exit_code == 0, done.output

    def rows(tower: Path, precision: str) -> Floats:
        with opened(path, mmproj=tower, precision=precision) as llm:
            return llm.image_features(expected()["pixels"])

    known = rows(same, "fast")
    worst = {precision: difference(rows(small, precision), known) for precision in ("fast", "exact")}
    assert worst["exact"] < LIMIT and worst["exact"] < 0.05 * worst["fast"]
