"""benchmarks/synthetic.py: models of real shapes with random weights."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
from benchmark_scripts import needs_scripts, small

from pyllamacpu.bench.cases import Setup
from pyllamacpu.bench.runner import open_engine
from pyllamacpu.errors import OptionError
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.model.codebooks import ensure_codebook
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.text import load_tokenizer

T = TensorType

pytestmark = needs_scripts


@pytest.fixture
def synthetic(script: Any) -> ModuleType:
    return script("synthetic")  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "mix", ["F32", "F16", "BF16", "Q4_0", "Q5_1", "Q8_0", "Q4_K_M", "Q6_K", "IQ2_XS", "IQ1_M"]
)
def test_a_synthetic_model_runs_with_sane_logits(synthetic: ModuleType, mix: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    synthetic.write(path, small(synthetic, n_experts=4 if mix in ("F16", "Q4_K_M") else 0), mix)
    engine = open_engine(Setup(path, 1, "f16", "f16", 64, 64), 64)
    sequence = engine.sequence()
    try:
        logits = engine.eval(sequence, list(range(20)), logits="all")
        assert np.isfinite(logits).all()
        assert 0.05 < float(logits.std()) < 50
    finally:
        sequence.close()
        engine.close()


@pytest.mark.parametrize("kind", [k for k in TensorType if k.runnable and k not in (T.F32, T.F16, T.BF16)])
def test_random_blocks_have_the_wanted_spread(synthetic: ModuleType, kind: TensorType) -> None:
    ensure_codebook(kind)
    blocks = synthetic.random_blocks(np.random.default_rng(1), kind, 2000, 0.05)
    values = dequantize(blocks.reshape(-1), kind, (2000, kind.block_size))
    assert np.isfinite(values).all()
    assert 0.03 < float(values.std()) < 0.08
    assert abs(float(values.mean())) < 0.03


@pytest.mark.parametrize("kind", [T.F32, T.F16, T.BF16])
def test_random_floats_have_about_the_wanted_spread(synthetic: ModuleType, kind: TensorType) -> None:
    values = dequantize(synthetic.random_floats(np.random.default_rng(1), kind, 4096, 0.02), kind, (4096,))
    assert 0.01 < float(values.std()) < 0.06 and abs(float(values.mean())) < 0.01


def test_the_file_is_read_by_the_gguf_package(synthetic: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    synthetic.write(path, small(synthetic, tied=False), "Q4_K_M")
    reader = gguf.GGUFReader(path)
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["output.weight"] == "Q6_K" and types["token_embd.weight"] == "Q4_K"
    assert types["output_norm.weight"] == types["rope_freqs.weight"] == "F32"
    assert reader.get_field("general.file_type").contents() == 15
    del reader


def test_its_tokenizer_loads_and_round_trips(synthetic: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    synthetic.write(path, small(synthetic), "Q8_0")
    with GGUFFile.open(path) as file:
        tokenizer = load_tokenizer(file.metadata, path)
        assert tokenizer is not None
        ids = tokenizer.encode("Hello, wörld!", add_special=False)
        assert all(0 <= i < 1000 for i in ids)
        assert tokenizer.decode(ids) == "Hello, wörld!"


@pytest.mark.parametrize("n", [700, 49152, 128256])
def test_vocabularies_have_the_size_and_no_token_twice(synthetic: ModuleType, n: int) -> None:
    tokens, merges, types = synthetic.vocabulary(n)
    assert len(tokens) == len(set(tokens)) == len(types) == n
    known = set(tokens)
    assert len(merges) == n - 512 and all("".join(m.split(" ")) in known for m in merges)


def test_mixes_follow_llama_quantize(synthetic: ModuleType) -> None:
    shape = synthetic.SHAPES["1B"]

    def layers(mix: str, kind: str) -> list[TensorType]:
        return [synthetic.tensor_type(mix, f"blk.{i}.{kind}.weight", shape) for i in range(shape.n_layers)]

    more = [i for i, kind in enumerate(layers("Q4_K_M", "ffn_down")) if kind == T.Q6_K]
    assert more == [0, 1, 4, 7, 10, 13, 14, 15]  # of Llama-3.2-1B-Instruct-Q4_K_M.gguf
    assert layers("Q4_K_M", "attn_v") == layers("Q4_K_M", "ffn_down")
    assert set(layers("Q4_K_M", "attn_q")) == {T.Q4_K}
    assert layers("Q4_K_S", "attn_v")[:5] == [T.Q5_K] * 4 + [T.Q4_K]
    assert synthetic.tensor_type("Q4_K_M", "token_embd.weight", shape) == T.Q6_K  # tied: the output too
    assert synthetic.tensor_type("Q8_0", "token_embd.weight", shape) == T.Q8_0
    assert synthetic.tensor_type("Q4_K_M", "token_embd.weight", synthetic.SHAPES["8B"]) == T.Q4_K
    small_rows = synthetic.SHAPES["135M"]  # rows of 576 are no multiple of 256
    assert synthetic.tensor_type("Q4_K_M", "blk.5.attn_q.weight", small_rows) == T.Q5_0
    assert synthetic.tensor_type("Q4_K_M", "blk.5.ffn_up.weight", small_rows) == T.Q5_0
    assert synthetic.tensor_type("Q4_K_M", "blk.2.ffn_down.weight", small_rows) == T.Q6_K


def test_sizes_are_those_of_the_real_models(synthetic: ModuleType) -> None:
    for label, n in (
        ("135M", 134_515_008),
        ("1B", 1_235_814_400),
        ("3B", 3_212_749_824),
        ("8B", 8_030_261_248),
    ):
        shape = synthetic.SHAPES[label]
        count = sum(rows * cols for rows, cols in synthetic.matrices(shape).values())
        count += sum(v.size for name, v in synthetic.vectors(shape).items() if name != "rope_freqs.weight")
        assert count == n, label


def test_rope_divisors_are_llama3s(synthetic: ModuleType) -> None:
    found = synthetic.llama3_divisors(synthetic.SHAPES["1B"])
    assert found.shape == (32,) and found[0] == 1.0 and found[-1] == pytest.approx(32.0)
    assert np.all(np.diff(found) >= 0)


def test_cached_models_are_made_once_and_bad_names_are_refused(
    synthetic: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(synthetic.SHAPES, "1B", small(synthetic))
    first = synthetic.cached("1b:q4_k_m", tmp_path)
    stamp = first.stat().st_mtime_ns
    assert first.name == "synthetic-1B-Q4_K_M.gguf"
    assert synthetic.cached("1B:Q4_K", tmp_path) == first and first.stat().st_mtime_ns == stamp
    assert synthetic.cached("1B:Q4_0:pure", tmp_path).name == "synthetic-1B-Q4_0-pure.gguf"
    for bad in ("2B:Q4_0", "1B", "1B:Q9", "1B:Q4_0:impure"):
        with pytest.raises(OptionError):
            synthetic.cached(bad, tmp_path)


def test_pure_is_one_type_and_refuses_rows_that_do_not_fit(synthetic: ModuleType, tmp_path: Path) -> None:
    synthetic.write(tmp_path / "a.gguf", small(synthetic), "Q4_K_M", pure=True)
    with GGUFFile.open(tmp_path / "a.gguf") as file:
        assert {info.type for info in file.tensors.values() if len(info.shape) == 2} == {T.Q4_K}
    with pytest.raises(OptionError, match="multiple of 256"):
        synthetic.write(tmp_path / "b.gguf", small(synthetic, dim=320), "Q4_K_M", pure=True)
    assert os.listdir(tmp_path) == ["a.gguf"]
