"""The norm of models that subtract the mean (arXiv 1607.06450): DeBERTa and the vision towers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyllamacpu.graph.ops import Tensor
    from pyllamacpu.graph.recorder import Recorder
    from pyllamacpu.model.weights import Weights


def layer_norm(plan: Recorder, weights: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    """x less its mean, over its standard deviation, times `name`.weight, plus `name`.bias, row by row."""
    weight, bias = weights.vector(f"{name}.weight"), weights.vector(f"{name}.bias")
    return plan.op("layer_norm", x=x, weight=weight, bias=bias, eps=eps)
