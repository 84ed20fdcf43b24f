"""Configs as they were published: what they mean in a GGUF file's keys.

Covers model/ranges.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyllamacpu.convert.models.config import read_config
from pyllamacpu.convert.models.shape import ModelShape
from pyllamacpu.errors import CheckpointError, ModelError
from pyllamacpu.gguf.values import ValueType
from pyllamacpu.model.config import ModelConfig

LLAMA31 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
    "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "rope_scaling": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    },
    "transformers_version": "4.42.3", "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
LLAMA1 = {
    "architectures": ["LLaMAForCausalLM"], "bos_token_id": 0, "eos_token_id": 1, "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 11008, "initializer_range": 0.02,
    "max_sequence_length": 2048, "model_type": "llama", "num_attention_heads": 32,
    "num_hidden_layers": 32, "pad_token_id": -1, "rms_norm_eps": 1e-06, "torch_dtype": "float16",
    "transformers_version": "4.27.0.dev0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
MISTRAL = {
    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
    "sliding_window": 4096, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
SCOUT_TEXT: dict[str, Any] = {
    "_attn_implementation_autoset": True, "attention_bias": False, "attention_chunk_size": 8192,
    "attention_dropout": 0.0, "bos_token_id": 200000, "eos_token_id": [200001, 200007, 200008],
    "for_llm_compressor": False, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
    "initializer_range": 0.02, "interleave_moe_layer_step": 1, "intermediate_size": 8192,
    "intermediate_size_mlp": 16384, "max_position_embeddings": 10485760, "model_type": "llama4_text",
    "no_rope_layers": [], "num_attention_heads": 40, "num_experts_per_tok": 1, "num_hidden_layers": 48,
    "num_key_value_heads": 8, "num_local_experts": 16, "output_router_logits": False,
    "pad_token_id": 200018, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0, "torch_dtype": "bfloat16", "use_cache": True, "use_qk_norm": True,
    "rope_scaling": {
        "factor": 16.0, "high_freq_factor": 1.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    },
    "vocab_size": 202048,
}  # fmt: skip
MAVERICK_TEXT = SCOUT_TEXT | {
    **{"use_qk_norm": False, "num_local_experts": 128, "interleave_moe_layer_step": 2, "rope_scaling": None},
    **{"max_position_embeddings": 1048576, "moe_layers": list(range(1, 48, 2))},
}


def llama4(text: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        **{"boi_token_index": 200080, "eoi_token_index": 200081, "image_token_index": 200092},
        **{"model_type": "llama4", "text_config": text, "torch_dtype": "bfloat16"},
        **{"transformers_version": "4.51.0.dev0", "vision_config": {"hidden_size": 1408}},
    }


def read(values: dict[str, Any]) -> ModelShape:
    return read_config(Path("config.json"), values, "hf")


def keys(values: dict[str, Any]) -> dict[str, Any]:
    shape = read(values)
    return {key.name.split(".", 1)[1]: key.value for key in shape.keys(shape.vocab_size)}


def test_llama_31() -> None:
    found = keys(LLAMA31)
    assert found == {
        **{"block_count": 32, "context_length": 131072, "embedding_length": 4096},
        **{"feed_forward_length": 14336, "attention.head_count": 32, "attention.head_count_kv": 8},
        **{"rope.freq_base": 500000.0, "attention.layer_norm_rms_epsilon": 1e-5, "vocab_size": 128256},
        "rope.dimension_count": 128,
    }
    divisors = read(LLAMA31).rope.divisors(128)
    assert divisors is not None
    assert (divisors.shape, divisors.dtype) == ((64,), np.float32)
    assert divisors[0] == 1.0
    assert divisors[-1] == 8.0
    assert np.all(np.diff(divisors) >= 0)
    assert np.count_nonzero((divisors > 1) & (divisors < 8)) == 6


def test_keys_have_the_types_that_loaders_ask_for() -> None:
    shape = read(LLAMA31 | {"head_dim": 128})
    kinds = {key.name: key.kind for key in shape.keys(shape.vocab_size)}
    reals = {"llama.rope.freq_base", "llama.attention.layer_norm_rms_epsilon"}
    assert {name for name, kind in kinds.items() if kind == ValueType.FLOAT32} == reals
    assert {kind for name, kind in kinds.items() if name not in reals} == {ValueType.UINT32}
    assert "llama.attention.key_length" in kinds


def test_llama_1() -> None:
    shape = read(LLAMA1)
    assert (shape.n_ctx, shape.kv_heads, shape.rope.theta, shape.norm_eps) == (2048, 32, 10000.0, 1e-6)


def test_mistral() -> None:
    assert keys(MISTRAL)["attention.sliding_window"] == 4096
    assert "attention.sliding_window" not in keys(MISTRAL | {"sliding_window": None})
    assert "attention.sliding_window" not in keys(MISTRAL | {"max_position_embeddings": 4096})
    assert "attention.sliding_window" not in keys(LLAMA31 | {"sliding_window": 4096})
    assert read(LLAMA31 | {"sliding_window": 4096}).notes


def test_scout_and_maverick() -> None:
    scout, maverick = keys(llama4(SCOUT_TEXT)), keys(llama4(MAVERICK_TEXT))
    names = ("interleave_moe_layer_step", "expert_count", "expert_used_count", "expert_feed_forward_length")
    assert [scout[name] for name in names] == [1, 16, 1, 8192]
    assert [maverick[name] for name in names] == [2, 128, 1, 8192]
    assert (scout["feed_forward_length"], scout["context_length"]) == (16384, 10485760)
    divisors = read(llama4(SCOUT_TEXT)).rope.divisors(128)
    assert divisors is not None
    assert set(divisors.tolist()) == {1.0, 16.0}
    assert read(llama4(MAVERICK_TEXT)).rope.divisors(128) is None
    assert "attention.sliding_window" not in scout


def test_llama_4_without_experts_and_without_chunks() -> None:
    guard = llama4(SCOUT_TEXT | {"moe_layers": [], "num_local_experts": 0, "interleave_moe_layer_step": 0})
    shape = read(guard)
    assert (shape.moe_step, shape.n_experts) == (0, 0)
    assert any("llama.cpp" in note for note in shape.notes)
    small = SCOUT_TEXT | {
        "no_rope_layers": [1] * 48,
        "attention_chunk_size": None,
        "attn_temperature_tuning": False,
    }
    assert keys(llama4(small))["attention.sliding_window"] == 0


def test_llama_4_with_fewer_layers_than_the_pattern_has() -> None:
    few = {"num_hidden_layers": 2, "no_rope_layers": None}
    absent = {key: value for key, value in SCOUT_TEXT.items() if key != "attention_chunk_size"}
    for text in (SCOUT_TEXT | few, absent | few):
        assert read(llama4(text)).chunked
        assert "attention.sliding_window" not in keys(llama4(text))


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ["type", "rope_type"])
def test_spellings_of_rope(spelling: str, kind: str) -> None:
    scaling = {kind: "yarn", "factor": 4.0, "original_max_position_embeddings": 8192, "beta_fast": 16}
    found = keys(LLAMA31 | {"rope_scaling": None, spelling: scaling})
    assert found["rope.scaling.type"] == "yarn"
    assert (found["rope.scaling.factor"], found["rope.scaling.original_context_length"]) == (4.0, 8192)
    assert found["rope.scaling.yarn_beta_fast"] == 16.0


def test_dynamic_rope_keeps_to_the_trained_context() -> None:
    shape = read(
        LLAMA31 | {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 4096}
    )
    assert (shape.rope.kind, shape.n_ctx) == ("none", 4096)
    assert "beyond 4096 tokens" in shape.notes[0]


WEIRD = (
    *(5, -1, 0, 5.5, -5.5, 1e-300, 1e300, float("inf"), float("nan"), 10**400, True, "", "a", [], ["a"], [1]),
    *([["a"]], [{}], [None], {}, {"a": 5}, {"type": 5}, {"rope_type": ["a"]}, {"full_attention": 5}),
    *({"full_attention": [1]}, {"full_attention": {"rope_theta": "x"}}),
)
YARN_31 = LLAMA31 | {
    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
}
OF_YARN = ("attention_factor", "beta_fast", "beta_slow", "extrapolation_factor", "mscale", "mscale_all_dim")


def spoiled(config: dict[str, Any], more: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """The config with each key, also those inside others, and `more` in turn, of each weird value."""
    for key in (*config, *more):
        for value in WEIRD:
            yield key, config | {key: value}
        inner = config.get(key)
        if isinstance(inner, dict):
            deeper = OF_YARN if inner.get("type") == "yarn" else ()
            yield from ((f"{key}.{name}", config | {key: values}) for name, values in spoiled(inner, deeper))


@pytest.mark.parametrize(
    "config", [LLAMA31, YARN_31, MISTRAL, llama4(SCOUT_TEXT), llama4(MAVERICK_TEXT)], ids=range(5)
)
def test_values_of_any_kind_are_read_or_refused(config: dict[str, Any]) -> None:
    """With an error that names the file; what is read is what the reader of GGUF files takes."""
    more = ("layer_types", "rope_parameters", "rope_scaling", "auto_map", "head_dim", "partial_rotary_factor")
    refused = set()
    for key, values in spoiled(config, more):
        try:
            shape = read(values)
        except CheckpointError:
            refused.add(key)
            continue
        found = {k.name: float(np.float32(k.value)) if k.kind == ValueType.FLOAT32 else k.value
                 for k in shape.keys(shape.vocab_size or 1)}  # fmt: skip
        try:
            ModelConfig.from_metadata({"general.architecture": shape.arch, **found}, {})
        except ModelError as error:
            pytest.fail(f"{key}: {error}")
    assert any(key.endswith("layer_types") for key in refused)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rms_norm_eps": 5}, "rms_norm_eps is 5: must be a number from 0 to 0.1"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1"),
        ({"rope_theta": 1e-300}, "rope_theta is 1e-300: must be a number from 0.001 to 1e"),
        ({"rope_theta": 10**400}, "rope_theta is 1000.*must be a number"),
        ({"layer_types": 5}, "layer_types is 5: must be a list of names"),
        ({"layer_types": [["a"]]}, "layer_types is .*: must be a list of names"),
        (
            {"rope_parameters": {"full_attention": 5}, "rope_scaling": None},
            "full_attention is 5: must be an ob",
        ),
        ({"intermediate_size": 1 << 25}, "intermediate_size"),
    ],
)
def test_what_no_file_could_hold_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        read(LLAMA31 | changes)
