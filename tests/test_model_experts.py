"""Mixtral: a Llama with experts, against transformers (tools/make_mixtral_fixtures.py).

Covers model/experts.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from llama4_models import opened
from test_batch_invariance import assert_same_bits, logits
from test_engine_adapters import write_adapter
from test_expert_memory import least

from pyllamacpu.convert.conversion import ConvertOptions
from pyllamacpu.convert.sources import plan_conversion
from pyllamacpu.engine.engine import Engine, Entry
from pyllamacpu.errors import CheckpointError, ModelError
from pyllamacpu.gguf import GGUFFile, GGUFWriter
from pyllamacpu.quantize.driver import run
from pyllamacpu.quantize.file_types import parse_file_type
from pyllamacpu.quantize.plan import Settings, make_plan

FOLDER = Path(__file__).parent / "fixtures" / "mixtral"


def converted(source: Path, folder: Path, outtype: str = "f32") -> Path:
    path = folder / f"mixtral-{outtype}.gguf"
    plan_conversion(source, ConvertOptions(outfile=str(path), outtype=outtype)).run()
    return path


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(FOLDER / "tiny", tmp_path_factory.mktemp("mixtral"))


@pytest.fixture(scope="module")
def oracle() -> tuple[list[int], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    with np.load(FOLDER / "tiny.npz") as data:
        return data["ids"].tolist(), data["rows"], data["logits"]


def copy_of(tmp_path: Path, **changed: Any) -> Path:
    """The checkpoint with another config.json."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(FOLDER / "tiny", folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text()) | changed
    kept = {key: value for key, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


def test_metadata_and_tensors_are_those_of_llama_cpps_files(mixtral: Path) -> None:
    with GGUFFile.open(mixtral) as file:
        assert file.metadata["general.architecture"] == "llama"
        wanted = {"expert_count": 6, "expert_used_count": 3, "feed_forward_length": 96}
        assert {key: file.metadata[f"llama.{key}"] for key in wanted} == wanted
        shapes = {name: info.shape for name, info in file.tensors.items() if name.startswith("blk.2.ffn")}
        assert shapes == {
            "blk.2.ffn_norm.weight": (64,),
            "blk.2.ffn_gate_inp.weight": (6, 64),
            "blk.2.ffn_gate_exps.weight": (6, 96, 64),
            "blk.2.ffn_up_exps.weight": (6, 96, 64),
            "blk.2.ffn_down_exps.weight": (6, 64, 96),
        }


@pytest.mark.parametrize(("outtype", "limit"), [("f32", 2e-4), ("f16", 2e-3)])
def test_logits_are_those_of_transformers(tmp_path: Path, oracle: Any, outtype: str, limit: float) -> None:
    ids, rows, wanted = oracle
    engine = opened(converted(FOLDER / "tiny", tmp_path, outtype))
    found = logits(engine, ids)[rows, : wanted.shape[1]]
    assert np.abs(found - wanted).max() < limit * wanted.std()
    engine.close()


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
def test_bits_depend_on_nothing_beside_a_token(mixtral: Path, tmp_path: Path, oracle: Any, kind: str) -> None:
    """Chunks, threads, other sequences, and experts that stay in the file."""
    ids, path = oracle[0][:80], mixtral
    if kind != "F32":
        path = tmp_path / "quantized.gguf"
        with GGUFFile.open(mixtral) as file:
            list(run(make_plan(file, Settings(parse_file_type(kind))), path))
    engine = opened(path)
    wanted = logits(engine, ids)
    for cut in (1, 7, 64):
        assert_same_bits(logits(engine, ids, cut), wanted)
    one, two = engine.sequence(), engine.sequence()
    found = engine.step([Entry(one, ids[:33], "none"), Entry(two, ids, "all")])
    assert_same_bits(found, wanted)
    engine.close()
    for options in ({"n_threads": 1}, {"n_threads": 3}, {"expert_memory": least(path)}):
        engine = opened(path, **options)
        assert_same_bits(logits(engine, ids, 40), wanted)
        engine.close()


def test_adapters_change_experts(mixtral: Path, tmp_path: Path, oracle: Any) -> None:
    """A row that uses none keeps its bits; one that does has them at any length of chunk."""
    ids, engine = oracle[0][:40], opened(mixtral)
    plain = logits(engine, ids)
    engine.load_adapters([(write_adapter(tmp_path / "a.gguf", engine, 4, 0), 0.0)])
    assert_same_bits(logits(engine, ids), plain)
    engine.default_adapters = engine.adapters.scales([(0, 4.0)])
    used = logits(engine, ids)
    assert not np.allclose(used, plain, atol=1e-3)
    assert_same_bits(logits(engine, ids, 7), used)
    engine.close()


def test_configs_that_make_no_sense_are_errors(tmp_path: Path) -> None:
    for changed, says in (
        ({"num_experts_per_tok": 7}, "num_experts_per_tok is 7.*there are 6 experts"),
        ({"num_local_experts": 0}, "num_local_experts"),
        ({"num_local_experts": 7}, r"gate\.weight has shape \(6, 64\), the config says \(7, 64\)"),
        ({"num_shared_experts": 1}, "num_shared_experts"),
    ):
        with pytest.raises(CheckpointError, match=says):
            converted(copy_of(tmp_path, **changed), tmp_path)
    llama = copy_of(tmp_path, architectures=["LlamaForCausalLM"])
    with pytest.raises(CheckpointError, match=r"num_(local_experts|experts_per_tok)"):
        converted(llama, tmp_path)


def test_what_a_config_leaves_out_is_transformers_usual(tmp_path: Path) -> None:
    names = ("rope_parameters", "rms_norm_eps", "num_key_value_heads", "sliding_window")
    left_out: dict[str, Any] = dict.fromkeys(names, ...)
    folder = copy_of(tmp_path, **left_out, num_attention_heads=8, num_experts_per_tok=...)
    with pytest.raises(CheckpointError, match="k_proj"):  # 8 heads of keys and values are usual
        converted(folder, tmp_path)
    left_out |= {"num_key_value_heads": 2, "num_experts_per_tok": ...}
    path = converted(copy_of(tmp_path, **left_out), tmp_path)
    with GGUFFile.open(path) as file:
        assert file.metadata["llama.rope.freq_base"] == 1e6
        assert file.metadata["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
        assert file.metadata["llama.expert_used_count"] == 2
        assert "llama.attention.sliding_window" not in file.metadata


def test_files_with_one_tensor_for_each_expert_are_refused(mixtral: Path, tmp_path: Path) -> None:
    """As converters of 2023 wrote them."""
    old = tmp_path / "old.gguf"
    with GGUFFile.open(mixtral) as file, GGUFWriter(old, "llama") as writer:
        for key, value in file.metadata.items():
            if key != "general.architecture":
                writer.add(key, value, file.metadata.value_type(key))
        for name, info in file.tensors.items():
            values = file.data(name).view(np.float32).reshape(info.shape)
            if "_exps" not in name:
                writer.add_array(name, values)
                continue
            for i, part in enumerate(values):
                writer.add_array(name.replace("_exps", f".{i}"), part)
    with pytest.raises(ModelError, match=r"a tensor for each expert.*convert"):
        Engine.open(old)
