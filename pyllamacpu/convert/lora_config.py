"""adapter_config.json: what an adapter says of itself, of PEFT and of MLX.

Meaning of the fields: PEFT's LoraConfig; mlx-lm's `lora_parameters`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pyllamacpu.convert.models.fields import Fields, words
from pyllamacpu.errors import CheckpointError

# What does not change what an adapter computes: training, bookkeeping, and what its tensors tell themselves.
_HARMLESS = words(
    """
    auto_mapping base_model_name_or_path revision peft_type task_type inference_mode r target_modules
    exclude_modules lora_alpha lora_dropout fan_in_fan_out init_lora_weights layers_to_transform
    layers_pattern loftq_config eva_config corda_config lora_ga_config peft_version qalora_group_size
    runtime_config parent_library alora_invocation_tokens ensure_weight_tying megatron_core
    use_rslora rank_pattern alpha_pattern
    """
)
_MLX_HARMLESS = words(
    """
    adapter_path batch_size config data fine_tune_type grad_checkpoint grad_accumulation_steps iters
    learning_rate lora_layers lora_parameters lr_schedule mask_prompt max_seq_length model num_layers
    optimizer optimizer_config project_name report_to resume_adapter_file save_every seed steps_per_eval
    steps_per_report test test_batches train val_batches wandb use_dora
    """
)
# What a GGUF adapter has no place for, when it is set.
_CANNOT = words(
    """
    use_dora bias lora_bias modules_to_save layer_replication trainable_token_indices target_parameters
    use_qalora arrow_config megatron_config use_bdlora
    """
)
_MERGE = "GGUF adapters cannot state that; merge the adapter into its base (merge_and_unload), convert that"
_OWN = (
    "if the base that it will run on is the changed one that it was trained on, "
    "say --ignore-config init_lora_weights"
)
_INNOCENT = ("gaussian", "eva", "orthogonal", "true", "false")  # ways to begin that leave the base alone
_CHANGE_BASE = re.compile(r"pissa(_niter_\d+)?|olora|corda|lora_ga|loftq")
_REPEATED_GROUP = re.compile(r"\)[*+{]")  # may take exponential time
_MAX_PATTERN, _MAX_REPEATS = 500, 2  # characters; each repeat is a power of the length of the name
_MAX_MODULE = 200  # characters of a name that patterns are tried on

Patterns = tuple[tuple[re.Pattern[str], float], ...]


@dataclass(frozen=True)
class Scaling:
    """By what the product B A is multiplied: `alpha` / rank, or / sqrt(rank) when `stabilised`; `patterns`
    give single modules another alpha. MLX states the product's `factor` itself.
    """

    alpha: float
    stabilised: bool = False
    patterns: Patterns = ()
    factor: float | None = None

    def of(self, module: str, rank: int) -> float:
        """Of a module by its name in the base model, such as model.layers.0.self_attn.q_proj."""
        if self.factor is not None:
            return self.factor
        alpha = _matching(self.patterns, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.stabilised else rank)


def is_mlx_config(values: Mapping[str, Any]) -> bool:
    return "peft_type" not in values and ("lora_parameters" in values or "fine_tune_type" in values)


def read_scaling(config: Fields) -> Scaling:
    """How the adapter is scaled, once it is certain that a GGUF file can hold it. Raises CheckpointError."""
    if is_mlx_config(config.values):
        return _mlx_scaling(config)
    if str(config.get("peft_type", "LORA")).upper() != "LORA":
        raise config.error("peft_type", config.get("peft_type"), "only LORA adapters can be converted")
    for key in sorted(_CANNOT):
        value = config.get(key)
        if value and not (key == "bias" and value == "none"):
            raise config.error(key, value, _MERGE)
    config.only(_HARMLESS, _CANNOT)
    _check_init(config)
    alpha = config.real("lora_alpha")
    return Scaling(alpha, config.flag("use_rslora"), _patterns(config, "alpha_pattern"))


def _check_init(config: Fields) -> None:
    """Some ways to begin take the adapter's first product out of the base: it fits the changed base only."""
    value = config.get("init_lora_weights", True)
    name = str(value).lower()
    if isinstance(value, bool) or name in _INNOCENT:
        return
    if not _CHANGE_BASE.fullmatch(name):
        raise config.error(
            "init_lora_weights",
            value,
            "whether that way to begin changes the base model is not known; " + _OWN,
        )
    way_out = (
        "merge it into the quantized base that it was trained on (merge_and_unload) and convert that"
        if name == "loftq"
        else "save it in PEFT with save_pretrained(..., path_initial_model_for_weight_conversion=...), which "
        "makes it an adapter of the original, or merge it (merge_and_unload)"
    )
    raise config.error(
        "init_lora_weights",
        value,
        f"it fits a base model that this changed, not the original: {way_out}; {_OWN}",
    )


def check_ranks(config: Fields, ranks: Mapping[str, int]) -> None:
    """That `ranks`, those of the tensors by the names of their modules, are those that r and rank_pattern
    state: alpha is divided by them, so a file that says both says two scales. Raises CheckpointError.
    """
    if is_mlx_config(config.values) or config.get("r") is None:
        return
    usual = config.whole("r", low=1)
    patterns = _patterns(config, "rank_pattern")
    for module, rank in ranks.items():
        stated = _matching(patterns, module, usual)
        if stated != rank:
            raise CheckpointError(
                config.path,
                f"r and rank_pattern state rank {stated:g} for {module}, and its tensors have rank {rank}: "
                "one of the two files is of another adapter; if the tensors are right, say --ignore-config r",
            )


def check_tying(config: Fields, changes_embedding: bool, is_tied: bool) -> None:
    """Raises CheckpointError for an adapter of the embedding that counts for the tied output too: PEFT's own
    changes what is looked up alone, and so do readers of GGUF.
    """
    if is_tied and changes_embedding and config.flag("ensure_weight_tying"):
        raise config.error("ensure_weight_tying", True, _MERGE)


def _matching(patterns: Patterns, module: str, usual: float) -> float:
    """The value of the first expression that is the end of a module's name, as in PEFT."""
    tried = patterns if len(module) <= _MAX_MODULE else ()
    return next((value for pattern, value in tried if pattern.fullmatch(module)), usual)


def _patterns(config: Fields, name: str) -> Patterns:
    """alpha_pattern or rank_pattern."""
    stated = config.get(name, {})
    if not isinstance(stated, dict):
        raise config.error(name, stated, "must be an object")
    inner = Fields(config.path, stated, f"{name}.")
    read = inner.real if name == "alpha_pattern" else partial(inner.whole, low=1)
    found = []
    for key in stated:
        if (
            len(key) > _MAX_PATTERN
            or _REPEATED_GROUP.search(key)
            or len(re.findall(r"[*+{]", key)) > _MAX_REPEATS
        ):
            raise inner.error(key, stated[key], "the expression is too complex")
        try:
            found.append((re.compile(rf"(.*\.)?({key})"), read(key)))
        except (re.error, RecursionError, OverflowError) as error:
            raise inner.error(key, stated[key], f"is not a regular expression: {error}") from error
    return tuple(found)


def _mlx_scaling(config: Fields) -> Scaling:
    kind = str(config.get("fine_tune_type", "lora")).lower()
    if kind != "lora" or config.get("use_dora"):
        raise config.error(
            "fine_tune_type", kind, "of MLX only lora can be converted; fuse it (mlx_lm.fuse), convert that"
        )
    config.only(_MLX_HARMLESS)
    parameters = config.get("lora_parameters", {})
    if not isinstance(parameters, dict):
        raise config.error("lora_parameters", parameters, "must be an object")
    inner = Fields(config.path, parameters, "lora_parameters.")
    inner.only(words("rank alpha scale dropout keys"), ignorable=False)
    return Scaling(0.0, factor=inner.real("scale"))


def base_name(config: Fields) -> str:
    """The base model as the adapter names it."""
    key = "model" if is_mlx_config(config.values) else "base_model_name_or_path"
    return str(config.get(key, ""))
