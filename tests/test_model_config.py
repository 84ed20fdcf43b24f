import math
from typing import Any

import numpy as np
import pytest

from pyllamacpu.errors import ModelError, OptionError
from pyllamacpu.gguf.reader import TensorInfo
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.model.config import ModelConfig, RopeScaling, kv_type
from pyllamacpu.model.rope import inverse_frequencies

SMALL: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 3,
    "llama.embedding_length": 96,
    "llama.feed_forward_length": 256,
    "llama.attention.head_count": 6,
    "llama.context_length": 2048,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.vocab_size": 500,
}


def config(tensors: dict[str, TensorInfo] | None = None, **changes: Any) -> ModelConfig:
    """The small config with keys changed; `__` stands for a dot, None removes a key."""
    metadata = SMALL | {f"llama.{key.replace('__', '.')}": value for key, value in changes.items()}
    kept = {key: value for key, value in metadata.items() if value is not None}
    return ModelConfig.from_metadata(kept, tensors or {})


def embedding(rows: int) -> dict[str, TensorInfo]:
    info = TensorInfo("token_embd.weight", (rows, 96), TensorType.F32, rows * 384, rows * 96, 0, 0)
    return {info.name: info}


def test_defaults_of_absent_keys() -> None:
    made = config()
    assert (made.arch, made.n_layers, made.dim, made.n_heads, made.kv_heads) == ("llama", 3, 96, 6, 6)
    assert (made.head_dim, made.value_dim, made.rope_dim, made.ffn_dim) == (16, 16, 16, 256)
    assert (made.vocab_size, made.n_ctx_train, made.norm_eps, made.rope_theta) == (500, 2048, 1e-5, 10000.0)
    assert made.rope_scaling == RopeScaling() and made.rope_scaling.magnitude == 1.0
    assert (made.sliding_window, made.n_experts, made.attention_scale) == (0, 0, 0.0)
    assert made.score_scale == 0.25


def test_explicit_keys() -> None:
    made = config(
        attention__head_count_kv=2,
        attention__key_length=40,
        attention__value_length=24,
        rope__dimension_count=20,
        rope__freq_base=5e5,
        attention__sliding_window=4096,
        attention__scale=0.5,
        expert_count=8,
        expert_used_count=2,
    )
    assert (made.kv_heads, made.head_dim, made.value_dim, made.rope_dim) == (2, 40, 24, 20)
    assert (made.rope_theta, made.sliding_window, made.score_scale) == (5e5, 4096, 0.5)
    assert (made.n_experts, made.n_experts_used) == (8, 2)


def test_llama4_keys() -> None:
    metadata = {key.replace("llama.", "llama4."): value for key, value in SMALL.items()}
    metadata |= {
        "general.architecture": "llama4",
        "llama4.expert_count": 16,
        "llama4.expert_used_count": 1,
        "llama4.expert_feed_forward_length": 128,
        "llama4.interleave_moe_layer_step": 2,
    }
    made = ModelConfig.from_metadata(metadata, {})
    assert (made.arch, made.n_experts, made.expert_ffn_dim, made.moe_layer_step) == ("llama4", 16, 128, 2)


@pytest.mark.parametrize("kind", [np.array, list, tuple])
def test_per_layer_arrays(kind: Any) -> None:
    same = config(attention__head_count=kind([6, 6, 6]), feed_forward_length=kind([64, 64, 64]))
    assert (same.n_heads, same.kv_heads, same.ffn_dim) == (6, 6, 64)
    made = config(attention__head_count_kv=kind([2, 6, 3]), feed_forward_length=kind([64, 96, 64]))
    assert made.kv_heads == (2, 6, 3) and made.ffn_dim == (64, 96, 64)
    assert [made.layer_kv_heads(i) for i in range(3)] == [2, 6, 3] and made.layer_heads(2) == 6
    assert made.layer_ffn_dim(1) == 96


def test_where_the_vocabulary_size_comes_from() -> None:
    assert config(embedding(501)).vocab_size == 500
    assert config(embedding(640), vocab_size=None).vocab_size == 640
    metadata = {key: value for key, value in SMALL.items() if key != "llama.vocab_size"}
    with_tokens = metadata | {"tokenizer.ggml.tokens": ["a"] * 300}
    assert ModelConfig.from_metadata(with_tokens, embedding(304)).vocab_size == 300
    with pytest.raises(ModelError, match=r"vocab_size is 500.*only 400 rows"):
        config(embedding(400))
    few = SMALL | {"llama.vocab_size": 200, "tokenizer.ggml.tokens": ["a"] * 258}
    with pytest.raises(ModelError, match=r"vocab_size is 200: the tokenizer has 258 tokens.*only 200 rows"):
        ModelConfig.from_metadata(few, embedding(200))
    assert ModelConfig.from_metadata(few, embedding(258)).vocab_size == 200
    with pytest.raises(ModelError, match=r"llama\.vocab_size is missing"):
        ModelConfig.from_metadata(metadata, {})


def test_linear_scaling() -> None:
    for changes in (
        {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0},
        {"rope__scaling__factor": 4.0},
        {"rope__scale_linear": 4.0},
        {"rope__scale_linear": 9.0, "rope__scaling__factor": 4.0},
    ):
        assert config(**changes).rope_scaling == RopeScaling("linear", 4.0)
    for changes in (
        {"rope__scale_linear": 1.0},
        {"rope__scaling__factor": 0.0},
        {"rope__scaling__type": "none", "rope__scaling__factor": 4.0},
    ):
        assert config(**changes).rope_scaling == RopeScaling()


def test_yarn_scaling() -> None:
    scaling = config(rope__scaling__type="yarn", rope__scaling__factor=4.0).rope_scaling
    assert scaling == RopeScaling("yarn", 4.0, original_context=2048, ext_factor=1.0)
    assert scaling.magnitude == pytest.approx(1 + 0.1 * math.log(4.0))
    scaling = config(
        rope__scaling__type="yarn",
        rope__scaling__factor=32.0,
        rope__scaling__original_context_length=512,
        rope__scaling__yarn_ext_factor=0.5,
        rope__scaling__attn_factor=2.0,
        rope__scaling__yarn_attn_factor=1.5,
        rope__scaling__yarn_beta_fast=16.0,
        rope__scaling__yarn_beta_slow=2.0,
        rope__scaling__yarn_log_multiplier=1.0,
    ).rope_scaling
    assert scaling == RopeScaling("yarn", 32.0, 512, 0.5, 2.0, 16.0, 2.0, 1.0, 1.5)
    assert scaling.magnitude == pytest.approx(
        3.0
    )  # the file's own factor is the whole of it, times attn_factor


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 0),
        ("block_count", 1 << 31),
        ("block_count", 2.5),
        ("block_count", True),
        ("block_count", "3"),
        ("embedding_length", 97),
        ("embedding_length", 0),
        ("embedding_length", -96),
        ("attention.head_count", 0),
        ("attention.head_count", np.int32([6, 6])),
        ("attention.head_count", np.int32([6, 6, -6])),
        ("attention.head_count", ["a", "b", "c"]),
        ("attention.head_count_kv", 4),
        ("attention.head_count_kv", np.int32([6, 6, 5])),
        ("attention.key_length", 0),
        ("rope.dimension_count", 18),
        ("rope.dimension_count", 7),
        ("context_length", 0),
        ("feed_forward_length", 0),
        ("attention.layer_norm_rms_epsilon", float("nan")),
        ("attention.layer_norm_rms_epsilon", -1e-5),
        ("attention.layer_norm_rms_epsilon", 3.0),
        ("rope.freq_base", float("inf")),
        ("rope.freq_base", 0.0),
        ("rope.scaling.type", "longrope"),
        ("rope.scaling.type", 3),
        ("rope.scaling.type", np.int32([1, 2])),
        ("rope.scaling.factor", -4.0),
        ("rope.scaling.factor", float("nan")),
        ("rope.scaling.alpha", 1000.0),
        ("expert_used_count", 2),
        ("expert_count", 8),
        ("attention.causal", False),
        ("final_logit_softcapping", 30.0),
        ("logit_scale", np.float32([1, 2])),
        ("attention.max_alibi_bias", 8.0),
        ("vocab_size", 0),
    ],
)
def test_absurd_values_are_named(key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=r"llama\.[a-z_.]+ is .+: ") as caught:
        config(**{key.replace(".", "__"): value})
    named = "expert_used_count" if key == "expert_count" else key
    assert f"llama.{named} is " in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key", ["block_count", "embedding_length", "attention__head_count", "context_length"]
)
def test_missing_keys_are_named(key: str) -> None:
    with pytest.raises(ModelError, match=f"llama.{key.replace('__', '.')} is missing"):
        config(**{key: None})


@pytest.mark.parametrize("arch", ["gpt2", None, 7, np.int32([1, 2])])
def test_other_architectures(arch: Any) -> None:
    with pytest.raises(ModelError, match=r"general\.architecture"):
        ModelConfig.from_metadata(SMALL | {"general.architecture": arch}, {})


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"general.type": "adapter"}, "is a LoRA adapter and not a model.*--lora"),
        ({"general.type": "mmproj"}, "is a vision tower without its text model"),
        ({"general.architecture": "clip"}, "is a vision tower without its text model"),
        ({"general.type": "imatrix", "general.architecture": None}, "is an importance matrix.*--imatrix"),
        ({"imatrix.chunk_count": 3}, "is an importance matrix"),
    ],
)
def test_files_that_hold_something_else(stated: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        ModelConfig.from_metadata({"general.architecture": "llama"} | stated, {})


def test_types_of_keys_and_values() -> None:
    assert kv_type("bf16") is kv_type(TensorType.BF16) is TensorType.BF16
    for kind in ("q4_k", "none", TensorType.I8):
        with pytest.raises(OptionError):
            kv_type(kind)


def test_configs_are_frozen() -> None:
    with pytest.raises(AttributeError):
        config().dim = 5  # type: ignore[misc]


@pytest.mark.parametrize("base", [1.0, 0.5])
def test_yarn_needs_a_base_above_one(base: float) -> None:
    odd = config(rope__scaling__type="yarn", rope__scaling__factor=4.0, rope__freq_base=base)
    with pytest.raises(ModelError, match="rope base above 1"):
        inverse_frequencies(odd)
    assert np.isfinite(inverse_frequencies(config(rope__freq_base=base))).all()


@pytest.mark.parametrize("tokens", [5, 0.5, True])
def test_a_vocabulary_that_is_not_a_list(tokens: Any) -> None:
    metadata = SMALL | {"tokenizer.ggml.tokens": tokens}
    assert ModelConfig.from_metadata(metadata, {}).n_tokens == 0
