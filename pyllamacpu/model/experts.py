"""Layers whose rows go to the best few of many feed-forward networks: what architectures with experts share.

Tensor names as in GGUF files: ffn_gate_inp the router, ffn_gate_exps, ffn_up_exps, ffn_down_exps the
experts. How a row's scores weigh in is the architecture's: on the way in (Llama 4) or out (Mixtral).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyllamacpu.model.config import ModelConfig
from pyllamacpu.model.weights import TensorSpec, Weights

if TYPE_CHECKING:  # models describe, the engine runs: it imports them, not the other way round
    from pyllamacpu.graph.ops import Tensor
    from pyllamacpu.graph.recorder import ExpertQueue, Recorder
    from pyllamacpu.model.weights import Experts


def expert_tensors(config: ModelConfig, prefix: str, ffn: int) -> Iterator[TensorSpec]:
    """The router and the experts, `ffn` wide, of the layer whose tensors begin with `prefix`."""
    n = config.n_experts
    yield TensorSpec(f"{prefix}ffn_gate_inp.weight", "matrix", (n, config.dim))
    for name, shape in mlp_shapes(config, ffn).items():
        yield TensorSpec(f"{prefix}{name}_exps.weight", "experts", (n, *shape))


def mlp_shapes(config: ModelConfig, ffn: int) -> dict[str, tuple[int, int]]:
    dim = config.dim
    return {"ffn_gate": (ffn, dim), "ffn_up": (ffn, dim), "ffn_down": (dim, ffn)}


def expert_matrices(w: Weights) -> list[Experts]:
    return [w.experts(f"ffn_{part}_exps.weight") for part in ("gate", "up", "down")]


@dataclass(frozen=True)
class Routing:
    """Where the rows of a layer go. best: (rows, k) scores, the largest first; order, place and ends: see
    `Recorder.segments`; queues: of the gate, up and down matrices.
    """

    best: Tensor
    order: Tensor
    place: Tensor
    ends: Tensor
    matrices: list[Experts]
    queues: list[ExpertQueue | None]

    def feed_forward(self, plan: Recorder, rows: Tensor) -> Tensor:
        """Each expert's network of its rows, which are in `order`."""
        gate, up, down = self.matrices
        of_gate, of_up, of_down = self.queues
        made = plan.segment_linear(rows, self.ends, gate, of_gate)
        other = plan.segment_linear(rows, self.ends, up, of_up)
        return plan.segment_linear(plan.silu_mul(made, other), self.ends, down, of_down)


def route(plan: Recorder, c: ModelConfig, w: Weights, h: Tensor, following: Weights | None) -> Routing:
    """Chooses experts for the rows of h. Those that stay in the file are read from here on; the `following`
    layer's are read behind them, if there are so many tokens that most of these are needed.
    """
    matrices = expert_matrices(w)
    scores = plan.linear(h, w.matrix("ffn_gate_inp.weight"))
    ids, best = plan.top_k(scores, c.n_experts_used)
    order, place, ends = plan.segments(ids, c.n_experts)
    queues = plan.request_experts(ends, *matrices)
    if following is not None:
        plan.expect_experts(ends, expert_matrices(following), if_most=True)
    return Routing(best, order, place, ends, matrices, queues)


def guess_experts(plan: Recorder, c: ModelConfig, w: Weights, x: Tensor) -> None:
    """Has the experts that the next layer's router would choose now read, while its attention is computed."""
    matrices = expert_matrices(w)
    if any(experts.memory is not None for experts in matrices):
        scores = plan.linear(
            plan.rms_norm(x, w.vector("ffn_norm.weight"), c.norm_eps), w.matrix("ffn_gate_inp.weight")
        )
        _, _, ends = plan.segments(plan.top_k(scores, c.n_experts_used)[0], c.n_experts)
        plan.expect_experts(ends, matrices)
