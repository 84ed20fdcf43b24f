"""params.json of Meta's own releases (the ModelArgs of their code), and of Mistral's."""

from __future__ import annotations

from dataclasses import replace

from pyllamacpu.convert.models.fields import Fields, words
from pyllamacpu.convert.models.llama4 import attention_notes, read_attention
from pyllamacpu.convert.models.mllama import EXTRA_ROWS, meta_cross_layers, meta_vision
from pyllamacpu.convert.models.rope import Rope
from pyllamacpu.convert.models.shape import ModelShape, window_note
from pyllamacpu.units import exact

_READ = words(
    """
    dim n_layers n_heads n_kv_heads head_dim vocab_size multiple_of ffn_dim_multiplier hidden_dim
    norm_eps rope_theta rope_freq_base use_scaled_rope rope_scaling_factor rope_high_freq_factor
    max_seq_len max_position_embeddings sliding_window tied_embeddings use_biases causal
    """
)
_HARMLESS = words("max_batch_size model_parallel_size use_kv_cache model_type")
_LLAMA4 = words(
    """
    moe_args vision_args ffn_exp nope_layer_interval use_qk_norm attention_chunk_size attn_temperature_tuning
    floor_scale attn_scale
    """
)
_VISION = words("vision_chunk_size vision_max_num_chunks vision_num_cross_attention_layers")
_EXPERTS = words("num_experts capacity_factor auto_scale_F top_k interleave_moe_layer_step")
# (dim, layers) of the Llama 3.2 text models, whose scaling factor is 32 and not 8: 1B, 3B, Guard 3 1B
_LLAMA32 = {(2048, 16), (3072, 28), (2048, 12)}


def read_params(params: Fields) -> ModelShape:
    """The shape; sizes that params.json does not state follow Meta's code. Raises CheckpointError."""
    llama4 = params.get("moe_args") is not None or params.get("nope_layer_interval") is not None
    vision = params.whole("vision_num_cross_attention_layers", 0, low=-1) > 0
    params.only(_READ | _LLAMA4 if llama4 else _READ | _VISION if vision else _READ, _HARMLESS)
    dim = params.whole("dim", low=1)
    n_heads = params.whole("n_heads", low=1)
    kv_heads = params.whole("n_kv_heads", n_heads, low=1)
    if n_heads % kv_heads:
        raise params.error("n_kv_heads", kv_heads, f"must divide the {n_heads} heads")
    head_dim = params.whole("head_dim", 0)
    if not head_dim and dim % n_heads:
        raise params.error("dim", dim, f"must be a multiple of {n_heads} heads")
    n_layers = params.whole("n_layers", low=1)
    rope, notes = _rope(params, dim, n_layers, llama4)
    n_ctx = _context(params, rope)
    if params.get("max_seq_len") is None and params.get("max_position_embeddings") is None:
        notes = (*notes, f"params.json states no context length: {n_ctx} tokens are assumed")
    window = _window(params, n_ctx)
    if window:
        notes = (*notes, window_note(window))
    shape = ModelShape(
        arch="llama",
        layout="meta",
        n_layers=n_layers,
        dim=dim,
        n_heads=n_heads,
        kv_heads=kv_heads,
        head_dim=head_dim or dim // n_heads,
        ffn_dim=_ffn_dim(params, dim),
        vocab_size=max(0, _vocab_size(params)),
        n_ctx=n_ctx,
        norm_eps=params.real("norm_eps", 1e-5),
        rope=rope,
        explicit_head_dim=bool(head_dim),
        tied=params.flag("tied_embeddings"),
        sliding_window=window,
        notes=notes,
    )
    if vision:
        return _with_images(params, shape)
    return _with_experts(params, shape) if llama4 else shape


def _with_images(params: Fields, shape: ModelShape) -> ModelShape:
    """Llama 3.2 Vision: layers that attend to images are not among `n_layers`. Raises CheckpointError."""
    n_cross = params.whole("vision_num_cross_attention_layers", low=1)
    if n_cross > shape.n_layers:
        raise params.error("vision_num_cross_attention_layers", n_cross, f"there are {shape.n_layers} layers")
    return replace(
        shape,
        arch="mllama",
        n_layers=shape.n_layers + n_cross,
        cross_layers=meta_cross_layers(shape.n_layers, n_cross),
        extra_rows=EXTRA_ROWS,
        vision=meta_vision(params),
    )


def _with_experts(params: Fields, shape: ModelShape) -> ModelShape:
    """Llama 4: sizes of feed-forward layers come from the tensors. Raises CheckpointError."""
    stated = params.get("moe_args", {})
    if not isinstance(stated, dict):
        raise params.error("moe_args", stated, "must be an object")
    experts = Fields(params.path, stated, "moe_args.")
    experts.only(_EXPERTS, ignorable=False)
    n_experts = max(0, int(experts.real("num_experts", 0)))
    step = experts.whole("interleave_moe_layer_step", 1, low=1) if n_experts else 0
    roped_only = params.get("nope_layer_interval") is None
    n_used = experts.whole("top_k", 1, low=1) if step else 0
    if n_used > n_experts:
        raise experts.error("top_k", n_used, f"there are {n_experts} experts")
    absent: dict[str, int | None] = {
        "use_qk_norm": False,
        "attn_temperature_tuning": not roped_only,
        "attention_chunk_size": None,  # whole attention
        "nope_layer_interval": shape.n_layers + 1,  # none
    }
    stated = {key: value for key, value in params.values.items() if value is not None}
    params = Fields(params.path, {**absent, **stated})
    attention = read_attention(params, shape.n_layers, n_experts, "nope_layer_interval")
    return replace(
        shape,
        arch="llama4",
        explicit_head_dim=True,
        ffn_dim=0,
        n_experts=n_experts,
        n_experts_used=n_used,
        moe_step=step,
        attention=attention,
        notes=(*shape.notes, *attention_notes(attention, n_experts, shape.n_ctx)),
    )


def _window(params: Fields, n_ctx: int) -> int:
    """Mistral's sliding window in tokens, 0 for none. Raises CheckpointError for other things it states."""
    if params.flag("use_biases") or not params.flag("causal", True):
        key = "use_biases" if params.flag("use_biases") else "causal"
        raise params.error(key, params.get(key), "only the other value can be converted")
    window = params.whole("sliding_window", 0)
    return window if window < n_ctx else 0


def _vocab_size(params: Fields) -> int:
    """-1 (Llama 2) means: as many as the tokenizer has."""
    return -1 if params.get("vocab_size", -1) == -1 else params.whole("vocab_size", low=1)


def _ffn_dim(params: Fields, dim: int) -> int:
    """2/3 of 4 dim, times the multiplier, rounded up to a multiple; 0 where nothing tells (tensors do)."""
    if params.get("hidden_dim") is not None:
        return params.whole("hidden_dim", low=1)
    if params.get("multiple_of") is None:
        return 0
    multiple = params.whole("multiple_of", low=1)
    ffn = int(2 * (4 * dim) / 3)
    if params.get("ffn_dim_multiplier") is not None:
        ffn = int(params.real("ffn_dim_multiplier") * ffn)
    return -(-ffn // multiple) * multiple


def _rope(params: Fields, dim: int, n_layers: int, llama4: bool) -> tuple[Rope, tuple[str, ...]]:
    theta = params.real("rope_theta", params.real("rope_freq_base", 500000.0 if llama4 else 10000.0))
    if not params.flag("use_scaled_rope"):
        return Rope(theta), ()
    stated = params.get("rope_scaling_factor")
    usual = 16.0 if llama4 else 32.0 if (dim, n_layers) in _LLAMA32 else 8.0
    factor = params.real("rope_scaling_factor", usual)
    high = params.real("rope_high_freq_factor", 1.0 if llama4 else 4.0)
    rope = Rope(theta, "llama3", {}, factor, 1.0, high, 8192)
    if stated is not None:
        return rope, ()
    return rope, (
        f"use_scaled_rope states no factor: {exact(factor)} is taken, "
        "with an original context of 8192 tokens",
    )


def _context(params: Fields, rope: Rope) -> int:
    """Tokens; the releases differ in what else they state."""
    stated = params.whole("max_seq_len", 0) or params.whole("max_position_embeddings", 0)
    if stated:
        return stated
    if rope.kind == "llama3":
        return 131072
    if rope.theta >= 1e6:
        return 16384  # Code Llama
    if rope.theta >= 5e5:
        return 8192  # Llama 3
    return 2048 if params.real("norm_eps", 1e-5) < 5e-6 else 4096  # Llama 1, Llama 2
