"""Adapters of Llama 3.2 Vision, whose weights are spread over three plans: engine/step_plans.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from mllama_files import mllama, opened
from test_batch_invariance import assert_same_bits
from test_engine_adapters import merged, write_adapter
from test_mllama import given

from pyllamacpu import Llama
from pyllamacpu.engine.batch import Entry
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.model.lora import AdapterScales

__all__ = ["mllama"]
CROSS = ("cross_attn_q", "cross_attn_k")  # which only images come to
PARTS = ("", ".attn_", "ffn_", "token_embd", "output.weight", *CROSS)
PROMPTS = ("text", "one", "several")


def entry(llm: Llama, name: str, adapters: AdapterScales) -> tuple[Entry, Any]:
    """A prompt for a step, and its images."""
    ids, images = given(name)
    placed, held = llm.vision.placed(ids, images) if images else (ids, ())
    sequence = llm.engine.sequence()
    sequence.adapters = adapters
    return Entry(sequence, placed, "all"), held


def logits(llm: Llama, name: str, adapters: AdapterScales = (), cut: int = 64) -> npt.NDArray[np.float32]:
    whole, held = entry(llm, name, adapters)
    parts = [whole.tokens[i : i + cut] for i in range(0, len(whole.tokens), cut)]
    rows = [llm.engine.eval(whole.sequence, part, logits="all").copy() for part in parts]
    whole.sequence.close()
    assert len(held) == len(given(name)[1])
    return np.concatenate(rows)


@pytest.mark.parametrize("part", PARTS)
def test_as_if_merged_with_and_without_images(mllama: Path, tmp_path: Path, part: str) -> None:
    """Against the same model with B A added to its weights; rows of other sequences keep their bits."""
    with opened(mllama) as plain, opened(mllama) as same, opened(mllama, n_batch=256) as llm:
        path = write_adapter(tmp_path / "adapter.gguf", plain.engine, 5, 7, part=part)
        llm.load_adapters([(path, 0.75)])
        used, names = llm.engine.default_adapters, llm.engine.adapters[0].pairs
        blocks = {name: (TensorType.F32, merged(same.engine, name, path, 0.75 * 2)) for name in names}
        base = {name: logits(plain, name) for name in PROMPTS}
        found = {name: logits(llm, name, used) for name in PROMPTS}
        with same.engine.replaced(blocks):
            for name in PROMPTS:
                wanted = logits(same, name)
                assert np.abs(found[name] - wanted).max() < 2e-4 * wanted.std()
        for name in PROMPTS:
            assert_same_bits(logits(llm, name), base[name])
            assert_same_bits(logits(llm, name, used, 1), found[name])
            changes = not np.array_equal(found[name], base[name])
            assert changes == (name != "text" or part not in CROSS)
        for use in range(len(PROMPTS) * 2):  # one sequence only
            both = [(name, mix) for name in PROMPTS for mix in ((), used)]
            mixed = [(name, mix if i == use else ()) for i, (name, mix) in enumerate(both)]
            entries, held = zip(*(entry(llm, *one) for one in mixed), strict=True)
            rows = llm.engine.step(list(entries[use % 2 :: 2]))
            alone = [found[name] if mix else base[name] for name, mix in mixed[use % 2 :: 2]]
            assert_same_bits(rows, np.concatenate(alone))
            assert len(held) == len(mixed)


def test_as_options_and_beside_each_other(mllama: Path, tmp_path: Path) -> None:
    """Two adapters that change different plans' weights, given when the model is opened."""
    with opened(mllama) as plain:
        files = [write_adapter(tmp_path / f"{p}.gguf", plain.engine, 5, 7, part=p) for p in CROSS]
    with opened(mllama, lora_path=[str(path) for path in files]) as llm:
        both = llm.logits(*given("one"))
        scales = [llm.engine.adapters.scales([(i, 1.0)]) for i in range(2)]
        single = [logits(llm, "one", mix) for mix in scales]
        assert all(np.abs(both - one).mean() > 0.001 * both.std() for one in single)
        llm.set_adapters({0: 1.0})
        assert_same_bits(llm.logits(*given("one")), single[0])
