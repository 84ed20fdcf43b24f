"""config.json of Hugging Face folders, and which architectures can be converted.

The meaning of the keys and the defaults of missing ones are transformers' (LlamaConfig, MistralConfig,
MixtralConfig). A key that is not known here and is not off is an error, because it may change what the model
computes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyllamacpu.convert.models.fields import Fields, short, words
from pyllamacpu.convert.models.llama4 import read_llama4
from pyllamacpu.convert.models.meta_params import read_params
from pyllamacpu.convert.models.mllama import read_mllama
from pyllamacpu.convert.models.rope import read_rope
from pyllamacpu.convert.models.shape import NO_OUTPUT, ModelShape, window_note
from pyllamacpu.errors import CheckpointError

DENSE = ("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM", "LlamaModel")
MIXTRAL = ("MixtralForCausalLM",)
LLAMA4 = ("Llama4ForCausalLM", "Llama4ForConditionalGeneration")
MLLAMA = ("MllamaForConditionalGeneration", "MllamaForCausalLM")
_BY_MODEL_TYPE = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "llama4_text": "Llama4ForCausalLM",
    "llama4": "Llama4ForConditionalGeneration",
    "mllama": "MllamaForConditionalGeneration",
    "mllama_text_model": "MllamaForCausalLM",
}

# What does not change the weights' meaning: training, generation defaults, bookkeeping of libraries.
HARMLESS = words(
    """
    architectures model_type torch_dtype dtype transformers_version use_cache initializer_range
    initializer_factor attention_dropout hidden_dropout hidden_dropout_prob attention_probs_dropout_prob
    resid_pdrop embd_pdrop dropout classifier_dropout residual_dropout pretraining_tp auto_map
    return_dict output_hidden_states output_attentions torchscript use_bfloat16 tf_legacy_loss
    chunk_size_feed_forward is_encoder_decoder is_decoder cross_attention_hidden_size
    add_cross_attention tie_encoder_decoder max_length min_length do_sample early_stopping num_beams
    num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
    output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens finetuning_task id2label
    label2id num_labels tokenizer_class prefix bos_token_id pad_token_id eos_token_id sep_token_id
    unk_token_id decoder_start_token_id task_specific_params problem_type quantization_config quantization
    compression_config attn_implementation gradient_checkpointing unsloth_version unsloth_fixed
    unsloth_tracking_ids neftune_noise_alpha model_max_length tokenizer_model_max_length
    tokenizer_padding_side transformers.js_config is_llama_config for_llm_compressor
    router_aux_loss_coef router_jitter_noise output_router_logits hf_id name_or_path model_name license
    use_flash_attention use_flash_attention_2 flash_attention pad_token eos_token bos_token
    """
)
# Keys that change nothing at these values.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "rope_interleaved": (False,),
    "is_causal": (True,),
    "use_parallel_residual": (False,),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "partial_rotary_factor": (1,),
    "rope_pct": (1,),
}
_READ = words(
    """
    hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    vocab_size max_position_embeddings rms_norm_eps rope_theta rope_scaling rope_parameters
    original_max_position_embeddings tie_word_embeddings attention_bias mlp_bias hidden_act
    sliding_window use_sliding_window layer_types max_sequence_length
    """
)
_READ_EXPERTS = words("num_local_experts num_experts_per_tok")


def read_config(path: Path, values: dict[str, Any], layout: str, ignored: Iterable[str] = ()) -> ModelShape:
    """The shape that config.json or params.json at `path` states. `ignored`: keys said to change nothing.

    Raises CheckpointError that names the key.
    """
    if not isinstance(values, dict) or not values:
        raise CheckpointError(path, "holds no model config")
    kept = {key: value for key, value in values.items() if key not in set(ignored)}
    config = Fields(path, kept)
    if layout == "meta":
        return read_params(config)
    arch = architecture_of(config)
    check_neutral(config)
    if (text := config.inside("text_config", ignored)) is not None:
        check_neutral(text)
    if arch in MLLAMA:
        return read_mllama(config, set(ignored), HARMLESS | set(NEUTRAL))
    if arch in LLAMA4:
        return read_llama4(config, set(ignored), HARMLESS | set(NEUTRAL))
    return _with_experts(config, _read_llama(config, arch)) if arch in MIXTRAL else _read_llama(config, arch)


def architecture_of(config: Fields) -> str:
    """The class that transformers would load. Raises CheckpointError for one that is not of this family."""
    names = config.get("architectures") or []
    name = (
        names[0] if isinstance(names, list) and names else _BY_MODEL_TYPE.get(str(config.get("model_type")))
    )
    if name not in (*DENSE, *MIXTRAL, *LLAMA4, *MLLAMA):
        said = f"the architecture {name}" if name else f"model_type {config.get('model_type')!r}"
        known = ", ".join((*DENSE, *MIXTRAL, *LLAMA4, *MLLAMA))
        raise CheckpointError(config.path, f"{said} cannot be converted; known architectures: {known}")
    return str(name)


def own_code_note(config: Fields, arch: str) -> list[str]:
    """Some models bring Python code along, which may compute something else."""
    code = config.get("auto_map")
    model = isinstance(code, dict) and next((code[key] for key in code if key.startswith("AutoModel")), None)
    if not model:
        return []
    said = f"the config names code of its own ({short(model)}), which is not run"
    return [f"warning: {said}: the model is converted as a plain {arch}"]


def check_neutral(config: Fields) -> None:
    for key, neutral in NEUTRAL.items():
        value = config.get(key)
        if value is not None and value not in neutral:
            raise config.error(key, value, f"only {neutral[0]} can be stated in a GGUF file")
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise config.error("hidden_act", activation, "only silu can be stated in a GGUF file")


@dataclass(frozen=True)
class _Usual:
    """What a class's config leaves out, and what it knows."""

    n_ctx: int = 2048
    kv_heads: int = 0  # 0: as many as there are heads
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    window: int = 0
    has_window: bool = True
    has_biases: bool = False


_LLAMA = _Usual(has_window=False, has_biases=True)
_USUAL = {
    "MistralForCausalLM": _Usual(131072, 8, window=4096),
    "MixtralForCausalLM": _Usual(131072, 8, 1e-5, 1e6),
}


def _read_llama(config: Fields, arch: str) -> ModelShape:
    config.only(_READ | _READ_EXPERTS if arch in MIXTRAL else _READ, HARMLESS | set(NEUTRAL))
    usual = _USUAL.get(arch, _LLAMA)
    dim = config.whole("hidden_size", low=1)
    n_heads = config.whole("num_attention_heads", low=1)
    kv_heads = config.whole(
        "num_key_value_heads",
        (usual.kv_heads if "num_key_value_heads" not in config.values else 0) or n_heads,
        low=1,
    )
    head_dim = head_size(config, dim, n_heads, kv_heads)
    usual_n_ctx = config.whole("max_sequence_length", usual.n_ctx, low=1)
    n_ctx = config.whole("max_position_embeddings", usual_n_ctx, low=1)
    rope, n_ctx = read_rope(config, n_ctx, usual.rope_theta)
    window, notes = _window(config, usual, n_ctx)
    notes += own_code_note(config, arch)
    if arch == "LlamaModel":
        notes.append(NO_OUTPUT)
    return ModelShape(
        arch="llama",
        layout="hf",
        n_layers=config.whole("num_hidden_layers", low=1),
        dim=dim,
        n_heads=n_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_dim=config.whole("intermediate_size", low=1),
        vocab_size=config.whole("vocab_size", 0),
        n_ctx=n_ctx,
        norm_eps=config.real("rms_norm_eps", usual.norm_eps),
        rope=rope,
        explicit_head_dim=config.get("head_dim") is not None,
        attention_bias=config.flag("attention_bias") and usual.has_biases,
        mlp_bias=config.flag("mlp_bias") and usual.has_biases,
        tied=config.flag("tie_word_embeddings") or arch == "LlamaModel",
        sliding_window=window,
        notes=(*rope.notes, *notes),
    )


def _with_experts(config: Fields, shape: ModelShape) -> ModelShape:
    """Mixtral's: in every layer, as wide as a dense layer's network."""
    n_experts = config.whole("num_local_experts", 8, low=1)
    n_used = config.whole("num_experts_per_tok", 2, low=1)
    if n_used > n_experts:
        raise config.error("num_experts_per_tok", n_used, f"there are {n_experts} experts")
    return replace(
        shape, n_experts=n_experts, n_experts_used=n_used, expert_ffn_dim=shape.ffn_dim, moe_step=1
    )


def head_size(config: Fields, dim: int, n_heads: int, kv_heads: int) -> int:
    """`head_dim`, or what follows from the other sizes."""
    if n_heads % kv_heads:
        raise config.error("num_key_value_heads", kv_heads, f"must divide the {n_heads} heads")
    head_dim = config.whole("head_dim", 0)
    if not head_dim and dim % n_heads:
        raise config.error("hidden_size", dim, f"must be a multiple of {n_heads} heads, or give head_dim")
    head_dim = head_dim or dim // n_heads
    if head_dim % 2:
        raise config.error("head_dim", head_dim, "must be even")
    return head_dim


def _window(config: Fields, usual: _Usual, n_ctx: int) -> tuple[int, list[str]]:
    """The sliding window in tokens, 0 for none, and what to say about it."""
    window = config.whole("sliding_window", usual.window if "sliding_window" not in config.values else 0)
    stated = config.get("layer_types", [])
    if not isinstance(stated, list) or not all(isinstance(kind, str) for kind in stated):
        raise config.error("layer_types", stated, "must be a list of names")
    kinds = set(stated)
    if len(kinds) > 1 or not kinds <= {"full_attention", "sliding_attention"}:
        raise config.error("layer_types", sorted(kinds), "layers of different kinds cannot be converted")
    if config.get("use_sliding_window") is False or kinds == {"full_attention"}:
        window = 0
    if not usual.has_window:
        note = f"sliding_window {window} is not used by Llama models and was left out"
        return 0, [note] if window else []
    if not window or window >= n_ctx:
        return 0, []
    return window, [window_note(window)]
