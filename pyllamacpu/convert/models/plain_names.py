"""Tensor names without what programs put around a model: prefixes of classes, infixes of wrappers."""

from __future__ import annotations

import re

_PREFIXES = ("model.", "language_model.", "text_model.", "base_model.")
# Parts of names that training wrappers add: torch.compile, data parallelism, DeepSpeed and Lightning, FSDP
# (both generations), activation checkpointing, Opacus.
_WRAPPERS = frozenset(
    (
        *("_orig_mod", "module", "_module", "_forward_module", "_wrapped_module"),
        *("_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"),
    )
)
_USELESS = re.compile(
    r"(.*\.)?(rotary_emb\.(original_)?inv_freq|rotary_emb\.(cos|sin)_cached|rope\.freqs"
    r"|[kvq]_scale|kv_scale|input_scale|_extra_state)"
)


def unwrapped(name: str) -> str:
    """A tensor's name without the parts that wrappers add, wherever they stand."""
    parts = name.split(".")
    if _WRAPPERS.isdisjoint(parts):
        return name
    return ".".join(part for part in parts if part not in _WRAPPERS)


def plain_name(name: str) -> str:
    """A tensor's name without wrappers, and without the prefixes of the classes around the model."""
    name = unwrapped(name)
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def is_useless(name: str) -> bool:
    """Whether a tensor can be left out: it is computed anew, or scales activations or the cache."""
    return _USELESS.fullmatch(name) is not None
