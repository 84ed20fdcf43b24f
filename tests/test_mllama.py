"""Llama 3.2 Vision against Meta's code (tools/make_mllama_fixtures.py); the same bits whatever is in a step.

Covers model/mllama.py, model/mllama_layers.py, engine/image_keys.py, engine/step_plans.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from mllama_files import difference, expected, llm, mllama, ollama_newer, ollama_older, opened
from mllama_models import IMAGE_TOKEN, processed, prompts

from pyllamacpu import Llama
from pyllamacpu.engine.batch import Entry
from pyllamacpu.engine.generate import Request
from pyllamacpu.engine.scheduler import Scheduler
from pyllamacpu.errors import OptionError, TokenizerError
from pyllamacpu.sampling.sampler import SamplingOptions

__all__ = ["llm", "mllama"]
TOLERANCE = 3e-5  # of the spread


def given(name: str) -> tuple[list[int], list[dict[str, Any]]]:
    ids, ratios = prompts()[name]
    return ids, [processed(i, ratio) for i, ratio in enumerate(ratios)]


@pytest.mark.parametrize("name", prompts())
def test_logits_are_those_of_metas_code(llm: Llama, name: str) -> None:
    ids, images = given(name)
    assert difference(llm.logits(ids, images=images), expected()[f"logits_{name}"]) < TOLERANCE


def rows(llm: Llama, name: str, cuts: list[int]) -> npt.NDArray[np.float32]:
    """Logits of a prompt that is read in pieces of these lengths."""
    ids, images = given(name)
    placed, held = llm.vision.placed(ids, images) if images else (ids, ())
    sequence, found, at = llm.engine.sequence(), [], 0
    for n in [*cuts, len(ids)]:
        if at < len(ids):
            found.append(llm.engine.eval(sequence, placed[at : at + n], logits="all").copy())
            at += n
    sequence.close()
    assert len(held) == len(images)
    return np.concatenate(found)


def test_the_same_bits_however_a_prompt_is_cut(llm: Llama) -> None:
    for name in ("several", "one"):
        whole = llm.logits(*given(name))
        for cuts in ([1] * 64, [3, 1, 34, 1, 1], [5, 40], [4, 33, 2]):
            assert np.array_equal(rows(llm, name, cuts), whole), (name, cuts)


def test_the_same_bits_beside_others_and_on_other_threads(mllama: Path, llm: Llama) -> None:
    names = ("one", "text", "first", "several")
    alone = {name: llm.logits(*given(name)) for name in names}
    with opened(mllama, n_threads=3, n_batch=256) as other:
        for name in names:
            assert np.array_equal(other.logits(*given(name)), alone[name])
        entries, held = [], []
        for name in names:
            ids, images = given(name)
            placed, keep = other.vision.placed(ids, images) if images else (ids, ())
            held.append(keep)
            entries.append(Entry(other.engine.sequence(), placed, "all"))
        found = other.engine.step(entries)
        assert np.array_equal(found, np.concatenate([alone[name] for name in names]))


def test_text_alone_runs_without_the_layers_that_see_images(llm: Llama) -> None:
    plans = llm.engine._plans
    assert plans.without_images is not None and plans.image is not None
    assert len(plans.without_images.plan) < len(plans.whole.plan)
    assert not any("cross_attn" in name for name in plans.without_images.plan.names)
    ids, _ = given("text")
    plain = llm.logits(ids)
    with_images = Entry(llm.engine.sequence(), given("first")[0], "none")
    placed, held = llm.vision.placed(*given("first"))
    with_images.tokens = placed
    beside = llm.engine.step([with_images, Entry(llm.engine.sequence(), ids, "all")])
    assert np.array_equal(beside, plain) and held


def test_an_image_is_read_once(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, images = given("one")
    whole = llm.logits(ids, images=images)
    monkeypatch.setattr(type(llm.vision.tower), "encode", lambda *_: pytest.fail("encoded again"))
    assert llm.engine.image_keys is not None
    monkeypatch.setattr(llm.engine.image_keys, "fill", lambda *_: pytest.fail("read again"))
    assert np.array_equal(llm.logits(ids, images=images), whole)


def test_images_side_by_side_share_pages(llm: Llama) -> None:
    ids, images = given("several")
    placed, held = llm.vision.placed(ids, images)
    sequence = llm.engine.sequence()
    llm.engine.eval(sequence, placed)
    keys = sequence.image_keys
    n = llm.vision.opened.config.rows_per_tile
    assert keys.n == (3 + 1) * n and sequence.seen_images() == (held[1].first, held[2].first)
    sequence.truncate(10)
    assert sequence.seen_images() == (held[0].first,)
    sequence.truncate(2)
    assert sequence.seen_images() == ()
    fork = sequence.fork()
    assert np.array_equal(llm.engine.eval(fork, placed[2:]), llm.logits(ids, images=images)[-1:])
    fork.close()
    sequence.close()


def test_keys_of_images_are_let_go_and_made_again(mllama: Path, llm: Llama) -> None:
    ids, images = given("several")
    with opened(mllama) as small:
        keys = small.engine.image_keys
        assert keys is not None
        keys.limit_bytes = 1
        small.logits(ids, images=images)
        assert len(keys._recent) == 1
        assert np.array_equal(small.logits(ids, images=images), llm.logits(ids, images=images))
        space = keys.space
        assert small.engine.cache.let_go is not None and small.engine.cache.let_go(1)
        assert not small.engine.cache._counts[space]


def test_pages_behind_an_image_are_of_that_image(mllama: Path, llm: Llama) -> None:
    """The prefix cache takes what stands before an image, and nothing of another one."""
    ids = [*range(1, 36), IMAGE_TOKEN, *range(1, 66)]
    with opened(mllama, n_batch=32) as engine_of:
        engine = engine_of.engine
        scheduler = Scheduler(engine, None)
        rows: list[npt.NDArray[np.float32]] = []
        for number, reused in ((0, 0), (1, 35), (0, 100)):
            image = [processed(number, (1, 1))]
            placed, held = engine_of.vision.placed(ids, image)

            def keep(tokens: Any, row: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
                rows.append(row.copy())
                return row

            handle = scheduler.submit(
                Request(placed, SamplingOptions(temperature=0.0), 1, processors=(keep,), images=held)
            )
            while not handle.is_finished:
                scheduler.step()
            assert handle.n_cached == reused
            assert np.array_equal(rows[-1], llm.logits(ids, images=image)[-1])


def test_images_that_a_processor_gives_together(llm: Llama) -> None:
    ids, images = given("several")
    together = {key: np.concatenate([image[key] for image in images], axis=1) for key in images[0]}
    padded = {key: np.concatenate([value, 0 * value[:, :1]], axis=1) for key, value in together.items()}
    whole = llm.logits(ids, images=images)
    for given_so in (together, padded):
        assert np.array_equal(llm.logits(ids, images=[given_so]), whole)


def test_images_that_do_not_fit_the_prompt(llm: Llama) -> None:
    ids, images = given("one")
    with pytest.raises(OptionError, match=r"1 placeholders .* take 2: one for each image"):
        llm.logits(ids, images=images * 2)


def test_a_placeholder_without_an_image(llm: Llama) -> None:
    """Whatever is asked for; other ids behind the vocabulary are just that."""
    ids, _ = given("one")
    assert IMAGE_TOKEN in ids
    for call in (llm.logits, llm.eval, llm.engine.hidden, lambda x: list(llm.generate(x))):
        with pytest.raises(
            TokenizerError, match=f"id {IMAGE_TOKEN} stands for an image, and no image is given"
        ):
            call(ids)
        with pytest.raises(TokenizerError, match=f"id {IMAGE_TOKEN + 1} is outside the vocabulary"):
            call([3, IMAGE_TOKEN + 1])


def test_files_as_ollama_makes_them(mllama: Path, llm: Llama, tmp_path: Path) -> None:
    newer = ollama_newer(mllama, tmp_path / "newer.gguf")
    older = ollama_older(mllama, tmp_path / "older.gguf", tmp_path / "projector.gguf")
    ids, images = given("several")
    whole = llm.logits(ids, images=images)
    with opened(newer) as model:
        assert difference(model.logits(ids, images=images), whole) < 1e-5
    with opened(older[0], mmproj=older[1]) as model:
        assert np.array_equal(model.logits(ids, images=images), whole)
    with opened(older[0]) as text:
        assert np.array_equal(text.logits(ids[:3]), whole[:3])
        with pytest.raises(OptionError, match="vision tower is missing"):
            text.logits(ids, images=images)
