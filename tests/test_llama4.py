"""Llama 4's text model against transformers and Meta's own code, and its bits whatever surrounds them.

Covers model/llama4.py, model/llama4_attention.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from llama4_models import NAMES, converted, expected, llama4, opened
from test_batch_invariance import assert_same_bits, logits, prompt

from pyllamacpu.engine.engine import Entry
from pyllamacpu.engine.prefix_cache import PrefixCache
from pyllamacpu.engine.session import Session
from pyllamacpu.errors import ContextError, ModelError
from pyllamacpu.gguf import GGUFFile, GGUFWriter, TensorType
from pyllamacpu.model.config import ModelConfig
from pyllamacpu.model.registry import load
from pyllamacpu.quantize.driver import run
from pyllamacpu.quantize.file_types import parse_file_type
from pyllamacpu.quantize.imatrix import Imatrix, ImatrixEntry
from pyllamacpu.quantize.plan import Settings, make_plan

__all__ = ["llama4"]


def test_there_is_a_fixture_for_every_shape() -> None:
    """Experts in every layer and in some, one and several of them, none; chunks of whole pages and others."""
    assert NAMES == ["guard4", "maverick", "meta_maverick", "meta_scout", "odd", "scout", "scout_8192"]


@pytest.mark.parametrize("name", NAMES)
def test_logits_agree_with_transformers_or_metas_code(
    name: str, llama4: dict[str, Path], tmp_path: Path
) -> None:
    ids, rows, wanted = expected(name)
    for path, limit in ((llama4[name], 2e-4), (converted(name, tmp_path, "f16"), 2e-3)):
        engine = opened(path)
        difference = np.abs(logits(engine, ids)[rows] - wanted).max() / wanted.std()
        engine.close()
        assert difference <= limit, f"off by {difference:.1e} of the spread"


@pytest.mark.parametrize("name", ["scout", "odd"])
def test_bits_do_not_depend_on_steps_threads_or_neighbours(name: str, llama4: dict[str, Path]) -> None:
    engine = opened(llama4[name])
    tokens = prompt(engine, 300)
    whole = logits(engine, tokens)
    for cut in (1, 7, 64):
        assert_same_bits(logits(engine, tokens, cut), whole)
    for n_threads, n_batch in ((1, 256), (3, 17)):
        other = opened(llama4[name], n_threads=n_threads, n_batch=n_batch)
        assert_same_bits(logits(other, tokens), whole)
        other.close()
    sequences = [engine.sequence() for _ in range(4)]
    others = [prompt(engine, 50 * i + 5, seed=i) for i in range(3)]
    mixed = engine.step([*map(Entry, sequences[:3], others), Entry(sequences[3], tokens[:70], "all")])
    assert_same_bits(mixed[3:], whole[:70])
    for row, other in zip(mixed[:3], others, strict=True):
        assert_same_bits(row[None], logits(engine, other)[-1:])
    engine.close()


def test_pages_of_past_chunks_are_freed(llama4: dict[str, Path]) -> None:
    """And what is cut back into a past chunk, forked or found in the prefix cache keeps its bits."""
    engine = opened(llama4["scout"], n_batch=64)
    tokens = prompt(engine, 400)
    whole = logits(engine, tokens)
    assert engine.cache.pages_in_use == 0
    session = Session(engine)
    session.append(tokens[:330])
    chunked, causal = 3, 11  # pages: of the chunks that the last 64 tokens have read, and of all tokens
    assert engine.cache.pages_in_use == chunked + causal
    assert session.sequence.reusable(300) == 300 and session.sequence.reusable(250) == 192
    for n in (329, 250, 3):  # no page is gone, those of a chunk, all
        session.truncate(n)
        assert len(session) == n
        fork = session.fork()
        fork.append(tokens[n : n + 40])
        assert_same_bits(fork.last[None], whole[n + 39 : n + 40])
        fork.close()
    prefixes = PrefixCache(engine.cache)
    session.append(tokens[3:330])
    prefixes.insert(session.sequence)
    session.close()
    for n, reused in ((330, 330), (250, 192), (100, 64)):
        sequence = engine.sequence()
        assert prefixes.extend(sequence, tokens[:n]) == reused
        assert_same_bits(engine.eval(sequence, tokens[reused:], logits="all"), whole[reused:])
        sequence.close()
    engine.close()


@pytest.mark.parametrize("error", [ContextError, KeyboardInterrupt])
def test_a_prompt_that_fails_behind_a_chunk(error: type[BaseException], llama4: dict[str, Path]) -> None:
    """A session that keeps all logits goes back to where it was, or as far as nothing must be read again."""
    engine = opened(llama4["scout"], n_batch=64)
    tokens = prompt(engine, 330)
    whole = logits(engine, tokens)
    session = Session(engine, keep_all=True)
    session.append(tokens[:100])

    def fail(done: int, total: int) -> None:
        if done > 250:
            raise error("enough")

    with pytest.raises(error, match="enough"):
        session.append(tokens[100:], on_progress=fail)
    n = 100 if error is ContextError else 64
    assert len(session) == session.n_scored == n
    session.append(tokens[n:])
    assert session.scores is not None
    assert_same_bits(session.scores[:330], whole)
    engine.close()


def edited(
    path: Path,
    target: Path,
    tensors: dict[str, np.ndarray | None],
    more: dict[str, np.ndarray] | None = None,
    **metadata: object,
) -> Path:
    """A copy with other tensors (None: without them), with `more`, and with other values of keys below
    `llama4.`
    """
    keys = {f"llama4.{key.replace('__', '.')}": value for key, value in metadata.items()}
    with GGUFFile.open(path) as file, GGUFWriter(target, "llama4") as writer:
        for key in file.metadata:
            if key not in keys and key not in ("general.architecture", "general.alignment"):
                writer.add(key, file.metadata[key])
        for key, value in keys.items():
            writer.add(key, value)
        for name, info in file.tensors.items():
            stored = file.data(name).view(np.float32).reshape(info.shape)
            array = tensors.get(name, stored)
            if array is not None:
                writer.add_array(name, array)
        for name, array in (more or {}).items():
            writer.add_array(name, array)
    return target


def test_the_number_of_experts_used_may_be_overridden(llama4: dict[str, Path], tmp_path: Path) -> None:
    """All experts for every token: their order among the slots is that of their scores, not of their ids."""
    path = edited(llama4["scout"], tmp_path / "all.gguf", {}, expert_used_count=4)
    engine, usual = opened(path), opened(llama4["scout"])
    tokens = prompt(engine, 90)
    found = logits(engine, tokens)
    assert not np.allclose(found, logits(usual, tokens), atol=1e-2)
    assert_same_bits(logits(engine, tokens, 11), found)
    assert engine.plan.names.count("top_k") == 4
    engine.close()
    usual.close()


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_quantized_experts_agree_with_their_decoded_values(
    kind: str, llama4: dict[str, Path], tmp_path: Path
) -> None:
    """With all experts for each token, so that rounding changes none of the router's choices; importance of
    one expert that counts, of others that do not.
    """
    source = edited(llama4["scout"], tmp_path / "all.gguf", {}, expert_used_count=4)
    importance = np.ones((4, 64)) + 99 * (np.arange(4) == 2)[:, None] * (np.arange(64) % 7 == 0)
    entry = ImatrixEntry(importance, np.ones(4, np.int64))
    matrix = Imatrix({f"blk.{i}.ffn_up_exps.weight": entry for i in range(4)}, ("text",), 1, 64)
    steps = ((source, kind, {"imatrix": matrix}), (tmp_path / kind, "F32", {"allow_requantize": True}))
    for path, name, settings in steps:
        with GGUFFile.open(path) as file:
            plan = make_plan(file, Settings(parse_file_type(name), **settings))  # type: ignore[arg-type]
            list(run(plan, tmp_path / name))
    packed, decoded = opened(tmp_path / kind), opened(tmp_path / "F32")
    tokens = prompt(packed, 150)
    found, wanted = logits(packed, tokens), logits(decoded, tokens)
    assert np.sqrt(((found - wanted) ** 2).mean()) < 0.05 * wanted.std()
    assert_same_bits(logits(packed, tokens, 1), found)
    assert "segment_matmul ffn_up_exps" in packed.plan.names
    assert "4 x blk.2.ffn_up_exps.weight 32x64" in " ".join(str(packed.plan).split())
    packed.close()
    decoded.close()


def test_experts_may_be_replaced(llama4: dict[str, Path]) -> None:
    name = "blk.3.ffn_down_exps.weight"
    engine = opened(llama4["scout"])
    tokens = prompt(engine, 20)
    before, data = logits(engine, tokens), engine.file.data(name)
    with engine.replaced({name: (TensorType.F32, (2 * data.view(np.float32)).view(np.uint8))}):
        assert not np.array_equal(logits(engine, tokens), before)
    with engine.replaced({name: (TensorType.F32, data.copy())}):
        assert_same_bits(logits(engine, tokens), before)
    with (
        pytest.raises(ModelError, match=f"{name}: .* are no F32 of 4 x 64 x 32"),
        engine.replaced({name: (TensorType.F32, data[:-4].copy())}),
    ):
        pass
    engine.close()


@pytest.mark.parametrize("part", ["gate_exps", "down_exps", "up_shexp", "gate_inp"])
def test_expert_tensors_that_are_missing_or_misshapen(
    part: str, llama4: dict[str, Path], tmp_path: Path
) -> None:
    name = f"blk.1.ffn_{part}.weight"
    missing = edited(llama4["scout"], tmp_path / "missing.gguf", {name: None})
    with pytest.raises(ModelError, match=rf"missing\.gguf: the tensor {name} is missing"):
        opened(missing)
    with GGUFFile.open(llama4["scout"]) as file:
        shape = file.tensors[name].shape
    wrong = np.zeros((shape[0] - 1, *shape[1:]), np.float32)
    misshapen = edited(llama4["scout"], tmp_path / "misshapen.gguf", {name: wrong})
    with pytest.raises(ModelError, match=rf"{name} has shape \({shape[0] - 1}, .* not \({shape[0]}, "):
        opened(misshapen)


def test_files_of_ollama(llama4: dict[str, Path], tmp_path: Path) -> None:
    """With the vision tower in the same file, and its names for what differs from the usual."""
    vision = {name: np.ones((4, 4), np.float32) for name in ("v.blk.0.attn_q.weight", "mm.linear_1.weight")}
    path = edited(llama4["scout"], tmp_path / "x.gguf", {}, vision, vision__block_count=1, use_qk_norm=True)
    engine, text = opened(path), opened(llama4["scout"])
    tokens = prompt(engine, 70)
    assert_same_bits(logits(engine, tokens), logits(text, tokens))
    engine.close()
    text.close()
    with pytest.raises(ModelError, match=r"no use for: blk\.0\.x"):
        opened(edited(llama4["scout"], tmp_path / "y.gguf", {}, {"blk.0.x": np.ones((4, 4), np.float32)}))


@pytest.mark.parametrize("name", NAMES)
def test_the_enumeration_is_the_files_tensors(name: str, llama4: dict[str, Path]) -> None:
    with GGUFFile.open(llama4[name]) as file:
        config = ModelConfig.from_metadata(file.metadata, file.tensors)
        model = load(file, config, None)
        assert {weight.name for weight in model.weights.values()} == set(file.tensors)
        assert sum(space.n_layers for space in model.kv_spaces) == config.n_layers
