"""The pass that gives adapters (LoRA) to the products whose weights they change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pyllamacpu.errors import NativeError
from pyllamacpu.graph.op_kinds import KINDS
from pyllamacpu.graph.ops import Op, Tensor
from pyllamacpu.model.lora import LowRankPair
from pyllamacpu.model.weights import Experts, Matrix, Table, padded_vector
from pyllamacpu.native import lib

PANEL = 16  # columns between A and B are whole panels

Pairs = Sequence[LowRankPair | None]
"""Of a weight, for each adapter in turn; None: it leaves the weight as it is."""


@dataclass(frozen=True)
class GraphAdapters:
    """`n` adapters; `pairs` by id() of the weights that some change (of experts: of the first one)."""

    n: int
    pairs: Mapping[int, Pairs]


def with_adapters(ops: list[Op], adapters: GraphAdapters) -> list[Op]:
    """Before each product of changed weights all its A's in one op; the B's are the product's own. It is
    otherwise as it was, so rows that use no adapter keep their bits. A plan may lack some of the weights: see
    `check_all_changed`.
    """
    result: list[Op] = []
    for op in ops:
        changed = any(id(w) in adapters.pairs for w in _weights(op))
        result += _CHANGED[op.name](op, adapters, result) if changed else [op]
    return result


def check_all_changed(plans: Iterable[Iterable[Op]], adapters: GraphAdapters) -> None:
    """Raises NativeError when a weight that adapters change is in none of a model's plans, in no product that
    can be changed.
    """
    left = set(adapters.pairs) - {id(w) for ops in plans for op in ops for w in _weights(op)}
    if left:
        raise NativeError(f"{len(left)} weights that adapters change are in no product that they can change")


def _weights(op: Op) -> list[Matrix | Table]:
    """Those by which `GraphAdapters.pairs` knows what the op multiplies with: of experts the first."""
    if op.name == "embed":
        return [op.values["table"]]
    if op.name == "segment_matmul":
        return list(op.values["matrices"][:1])
    return [m for m in op.values["matrix"] if m is not None] if op.name == "matmul" else []


def _multiplied(op: Op, adapters: GraphAdapters, _before: list[Op]) -> list[Op]:
    """A product, with what adapters add to its outputs."""
    none: Pairs = [None] * adapters.n
    pairs = [pair for m in op.values["matrix"] for pair in adapters.pairs.get(id(m), none)]
    factors = np.array([pair.factor if pair else 0.0 for pair in pairs], np.float32)
    x = op.values["x"]
    low_rank = Tensor(x.recorder, sum(columns(pair) for pair in pairs), x.rows, op.times)
    down = {
        "x": x,
        "n_adapters": adapters.n,
        "matrices": [pair and pair.a for pair in pairs],
        "factors": padded_vector("factors", factors),
        "out": low_rank,
    }
    up = {"low_rank": low_rank, "n_adapters": adapters.n, "up": [pair and pair.b for pair in pairs]}
    op.values.update(up)
    return [Op(KINDS["adapter_down"], op.rows, down, op.times), op]


def _embedded(op: Op, adapters: GraphAdapters, _before: list[Op]) -> list[Op]:
    """Likewise for rows of the embedding, of one adapter after another."""
    ops = [op]
    out: Tensor = op.values["out"]
    for i, pair in enumerate(adapters.pairs[id(op.values["table"])]):
        if pair is None:
            continue
        low_rank = Tensor(out.recorder, pair.rank, out.rows)
        down = {"table": pair.a, "adapter": i, "factor": pair.factor, "out": low_rank}
        only = [pair.b if j == i else None for j in range(adapters.n)]
        up = {"x": low_rank, "n_adapters": adapters.n, "matrices": only, "out": out}
        ops.append(Op(KINDS["adapter_embed"], lib.PL_ROWS_TOKENS, down))
        ops.append(Op(KINDS["adapter_up"], lib.PL_ROWS_TOKENS, up))
    return ops


def _of_experts(op: Op, adapters: GraphAdapters, before: list[Op]) -> list[Op]:
    """Of experts, one adapter after another. Which token a row belongs to is in the order of its segments."""
    ops, x, ends = [op], op.values["x"], op.values["ends"]
    order = next(o.values["order"] for o in before if o.name == "segment_rows" and o.values["ends"] is ends)
    for i, pair in enumerate(adapters.pairs[id(op.values["matrices"][0])]):
        if pair is None:
            continue
        assert isinstance(pair.a, Experts) and isinstance(pair.b, Experts)
        low_rank = Tensor(x.recorder, pair.rank, x.rows, op.times)
        common = {"adapter": i, "ends": ends, "order": order}
        down = {"x": x, "matrices": list(pair.a.matrices), "factor": pair.factor, "out": low_rank, **common}
        up = {"x": low_rank, "matrices": list(pair.b.matrices), "out": op.values["out"], **common}
        ops.append(Op(KINDS["adapter_experts_down"], op.rows, down, op.times))
        ops.append(Op(KINDS["adapter_experts_up"], op.rows, up, op.times))
    return ops


_CHANGED = {"matmul": _multiplied, "embed": _embedded, "segment_matmul": _of_experts}


def columns(pair: LowRankPair | None) -> int:
    """Between A and B."""
    return 0 if pair is None else -(-pair.rank // PANEL) * PANEL
