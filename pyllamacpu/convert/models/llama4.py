"""Llama 4's config.json: the text model."""

from __future__ import annotations

from collections.abc import Iterable

from pyllamacpu.convert.models.fields import Fields, words
from pyllamacpu.convert.models.rope import read_rope
from pyllamacpu.convert.models.shape import ModelShape
from pyllamacpu.model.llama4_attention import (
    CHUNK,
    INTERVAL,
    MAX_TEMPERATURE_SCALE,
    TEMPERATURE_LENGTH,
    TEMPERATURE_SCALE,
    Llama4Attention,
    every,
)
from pyllamacpu.units import exact

PATCH_TOKEN = 200092  # <|patch|>

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


def read_llama4(outer: Fields, ignored: set[str], harmless: Iterable[str]) -> ModelShape:
    """The text model of Llama4ForCausalLM or Llama4ForConditionalGeneration. Raises CheckpointError."""
    config = outer
    if (text := outer.inside("text_config", ignored)) is not None:
        outer.only(_OUTER, harmless)
        config = text
    config.only(_READ, harmless)
    n_layers = config.whole("num_hidden_layers", 48, low=1)
    dim, n_heads = config.whole("hidden_size", 5120, low=1), config.whole("num_attention_heads", 40, low=1)
    kv_heads = config.whole("num_key_value_heads", 8, low=1)
    head_dim = config.whole("head_dim", 128, low=2)
    if n_heads % kv_heads or head_dim % 2:
        raise config.error("num_key_value_heads", kv_heads, f"must divide the {n_heads} heads")
    rope, n_ctx = read_rope(config, config.whole("max_position_embeddings", 131072, low=1), 500000.0)
    step = _moe_step(config, n_layers)
    n_experts = config.whole("num_local_experts", 16, low=1) if step else 0
    n_used = config.whole("num_experts_per_tok", 1, low=1) if step else 0
    if n_used > n_experts:
        raise config.error("num_experts_per_tok", n_used, f"there are {n_experts} experts")
    attention = read_attention(config, n_layers, n_experts)
    tied = config.flag("tie_word_embeddings") or (config is not outer and outer.flag("tie_word_embeddings"))
    notes = attention_notes(attention, n_experts, n_ctx)
    notes += () if step else ("no layer has experts: llama.cpp does not load such llama4 files",)
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
        n_experts_used=n_used,
        expert_ffn_dim=config.whole("intermediate_size", 8192, low=1),
        moe_step=step,
        attention=attention,
        image_token=_image_token(outer),
        notes=(*rope.notes, *notes),
    )


def _image_token(outer: Fields) -> int:
    """0 for the released one, which readers know."""
    token = outer.whole("image_token_index", outer.whole("image_token_id", PATCH_TOKEN))
    return 0 if token == PATCH_TOKEN else token


def _moe_step(config: Fields, n_layers: int) -> int:
    """Every how many layers there are experts; 0 for none."""
    step = config.whole("interleave_moe_layer_step", 1)
    listed = config.values.get("moe_layers")
    if listed is None:
        return step
    if listed == []:
        return 0
    expected = list(range(step - 1, n_layers, step)) if step else []
    if listed != expected:
        raise config.error("moe_layers", listed, f"must be every {step}th layer to be stated in a GGUF file")
    return step


def read_attention(
    config: Fields, n_layers: int, n_experts: int, interval_key: str = "no_rope_layer_interval"
) -> Llama4Attention:
    """Chunks, layers without rope, temperature and norms. Raises CheckpointError for what makes no sense.

    Layers with rope are the chunked ones unless `layer_types` says otherwise. A chunk size of null means
    whole attention everywhere, and nothing about rope (Llama Guard 4).
    """
    for key in ("no_rope_layers", "layer_types"):
        if not isinstance(config.get(key, []), list):
            raise config.error(key, config.get(key), "must be a list")
    listed = config.get("no_rope_layers", [])
    interval = config.whole(interval_key, INTERVAL, low=1)
    roped = tuple(bool(x) for x in listed) or every(interval, n_layers)
    names = {"chunked_attention": True, "full_attention": False}
    kinds = config.get("layer_types") or ["chunked_attention" if x else "full_attention" for x in roped]
    for key, value in (("no_rope_layers", roped), ("layer_types", kinds)):
        if len(value) != n_layers or (key == "layer_types" and not {*map(str, value)} <= names.keys()):
            raise config.error(key, value, f"must have one for each of {n_layers} layers, of {[*names]}")
    null = "attention_chunk_size" in config.values and config.get("attention_chunk_size") is None
    chunk = 0 if null else config.whole("attention_chunk_size", CHUNK, low=1)
    tuned = config.flag("attn_temperature_tuning", True)
    scale = config.real("attn_scale", TEMPERATURE_SCALE)
    if not 0 <= scale <= MAX_TEMPERATURE_SCALE:
        raise config.error("attn_scale", scale, f"must be from 0 to {exact(MAX_TEMPERATURE_SCALE)}")
    return Llama4Attention(
        chunked=tuple(names[kind] for kind in kinds) if chunk else (False,) * n_layers,
        roped=roped,
        chunk_size=chunk if any(names[kind] for kind in kinds) else 0,
        temperature_length=config.whole("floor_scale", TEMPERATURE_LENGTH, low=1) if tuned else 0,
        temperature_scale=scale,
        qk_norm=config.flag("use_qk_norm", True),
    )


def attention_notes(attention: Llama4Attention, n_experts: int, n_ctx: int) -> tuple[str, ...]:
    """What llama.cpp will not know."""
    keys = [key.name for key in attention.metadata(n_experts) if key.name != "attention.sliding_window"]
    if not keys:
        return ()
    note = (
        f"this Llama 4 states {', '.join(keys)}, which llama.cpp does not read or not like this: its answers"
    )
    alike = keys == ["attention.chunk_size"] and n_ctx > CHUNK
    longer = f" differ beyond {min(attention.chunk_size or CHUNK, CHUNK)} tokens" if alike else " differ"
    return (note + longer,)
