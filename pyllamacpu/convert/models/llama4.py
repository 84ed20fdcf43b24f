"""Llama 4's config.json: the text model, with what GGUF files leave unsaid checked.

The format states none of Llama 4's constants (chunks of 8192, every 4th layer without rope, temperature
tuning, q/k norm by the number of experts): loaders have them built in. So a config that differs from them
cannot be converted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyllamacpu.convert.models.fields import Fields, words
from pyllamacpu.convert.models.rope import read_rope
from pyllamacpu.convert.models.shape import ModelShape
from pyllamacpu.errors import CheckpointError

_READ = words(
    """
    hidden_size intermediate_size intermediate_size_mlp num_hidden_layers num_attention_heads
    num_key_value_heads head_dim vocab_size max_position_embeddings rms_norm_eps rope_theta rope_scaling
    rope_parameters hidden_act original_max_position_embeddings tie_word_embeddings attention_bias
    num_experts_per_tok num_local_experts moe_layers interleave_moe_layer_step use_qk_norm
    no_rope_layers no_rope_layer_interval attention_chunk_size layer_types attn_temperature_tuning
    floor_scale attn_scale
    """
)
_OUTER = words(
    """
    text_config vision_config boi_token_index eoi_token_index image_token_index image_token_id
    boi_token_id eoi_token_id tie_word_embeddings
    """
)
_NO_ROPE_STEP = 4
_QK_NORM_EXCEPTION = 128  # experts: Maverick, without q/k norm


def read_llama4(outer: Fields, ignored: set[str], harmless: Iterable[str]) -> ModelShape:
    """The text model of Llama4ForCausalLM or Llama4ForConditionalGeneration. Raises CheckpointError."""
    config = outer
    if isinstance(outer.get("text_config"), dict):
        outer.only(_OUTER, harmless)
        kept = {key: value for key, value in outer.values["text_config"].items() if key not in ignored}
        config = Fields(outer.path, kept, "text_config.")
    config.only(_READ, harmless)
    n_layers = config.whole("num_hidden_layers", 48, low=1)
    dim, n_heads = config.whole("hidden_size", 5120, low=1), config.whole("num_attention_heads", 40, low=1)
    kv_heads = config.whole("num_key_value_heads", 8, low=1)
    head_dim = config.whole("head_dim", 128, low=2)
    if n_heads % kv_heads or head_dim % 2:
        raise config.error("num_key_value_heads", kv_heads, f"must divide the {n_heads} heads")
    rope, n_ctx = read_rope(config, config.whole("max_position_embeddings", 131072, low=1), 500000.0)
    step = _moe_step(config, n_layers)
    n_experts = config.whole("num_local_experts", 16, low=0) if step else 0
    check_constants(config, n_experts, n_layers)
    tied = config.flag("tie_word_embeddings") or (config is not outer and outer.flag("tie_word_embeddings"))
    notes = () if step else ("no layer has experts: llama.cpp does not load such llama4 files",)
    return ModelShape(
        arch="llama4",
        layout="hf",
        n_layers=n_layers,
        dim=dim,
        n_heads=n_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_dim=config.whole("intermediate_size_mlp", 16384, low=1),
        vocab_size=config.whole("vocab_size", 0),
        n_ctx=n_ctx,
        norm_eps=config.real("rms_norm_eps", 1e-5),
        rope=rope,
        explicit_head_dim=True,
        attention_bias=config.flag("attention_bias"),
        tied=tied,
        n_experts=n_experts,
        n_experts_used=config.whole("num_experts_per_tok", 1, low=1) if step else 0,
        expert_ffn_dim=config.whole("intermediate_size", 8192, low=1),
        moe_step=step,
        chunked=is_chunked(config, n_layers),
        notes=(*rope.notes, *notes),
    )


def _moe_step(config: Fields, n_layers: int) -> int:
    """Every how many layers there are experts; 0 for none."""
    step = config.whole("interleave_moe_layer_step", 1)
    listed = config.values.get("moe_layers")
    if listed is None:
        return step
    if listed == []:
        return 0
    expected = list(range(step - 1, n_layers, step)) if step else []
    if list(listed) != expected:
        raise config.error("moe_layers", listed, f"must be every {step}th layer to be stated in a GGUF file")
    return step


def is_chunked(config: Fields, n_layers: int, interval_key: str = "no_rope_layer_interval") -> bool:
    """Whether the layers alternate as Scout's and Maverick's do; False where all are full attention with
    rope.
    """
    roped = config.get("no_rope_layers") or []
    interval = config.whole(interval_key, _NO_ROPE_STEP, low=1)
    usual = [int((i + 1) % _NO_ROPE_STEP != 0) for i in range(n_layers)]
    actual = [int(bool(x)) for x in roped] or [int((i + 1) % interval != 0) for i in range(n_layers)]
    kinds = config.get("layer_types") or ["chunked_attention" if x else "full_attention" for x in actual]
    whole = config.values.get("attention_chunk_size", True) is None  # absent means the usual size
    if actual == [1] * n_layers and (set(kinds) == {"full_attention"} or whole):
        return False
    if actual != usual:
        raise config.error("no_rope_layers", actual, "GGUF files imply every 4th layer without rope")
    if kinds != ["chunked_attention" if x else "full_attention" for x in usual]:
        raise config.error("layer_types", kinds, "GGUF files imply every 4th layer with full attention")
    return True


def check_constants(
    config: Fields, n_experts: int, n_layers: int, interval_key: str = "no_rope_layer_interval"
) -> None:
    """Raises CheckpointError for what differs from what loaders have built in."""
    if not is_chunked(config, n_layers, interval_key):
        if config.flag("attn_temperature_tuning", True) and config.get("no_rope_layers") is None:
            raise config.error("attn_temperature_tuning", True, "cannot be stated without chunked layers")
    else:
        implied: dict[str, Any] = {"attention_chunk_size": 8192, "floor_scale": 8192, "attn_scale": 0.1}
        for key, value in implied.items():
            if config.values.get(key, value) != value:
                raise config.error(key, config.values[key], f"GGUF files imply {value}")
        if not config.flag("attn_temperature_tuning", True):
            raise config.error("attn_temperature_tuning", False, "GGUF files imply true")
    norm = n_experts != _QK_NORM_EXCEPTION
    if config.flag("use_qk_norm", True) != norm:
        raise CheckpointError(
            config.path,
            f"{config.prefix}use_qk_norm is {str(not norm).lower()}: GGUF files imply {str(norm).lower()} "
            f"with {n_experts} experts",
        )
