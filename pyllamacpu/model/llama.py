"""The dense Llama architecture (Llama 1 to 3.3 and everything of that shape), recorded as a plan.

Sources: arXiv 2302.13971, 2307.09288, 2407.21783; tensor names and the adjacent-pair rotation as in GGUF
files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllamacpu.errors import ModelError
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.model.config import ModelConfig
from pyllamacpu.model.rope import inverse_frequencies
from pyllamacpu.model.weights import Matrix, Table, Vector, WeightLoader, padded_vector

if TYPE_CHECKING:  # models describe, the engine runs: it imports them, not the other way round
    from pyllamacpu.graph.recorder import Recorder


@dataclass(frozen=True, eq=False)
class Linear:
    """weight: (out, in); bias: (out,) or None."""

    weight: Matrix
    bias: Vector | None


@dataclass(frozen=True, eq=False)
class Layer:
    attn_norm: Vector  # (dim)
    q: Linear  # (n_heads * head_dim, dim)
    k: Linear  # (kv_heads * head_dim, dim)
    v: Linear  # (kv_heads * value_dim, dim)
    o: Linear  # (dim, n_heads * value_dim)
    ffn_norm: Vector  # (dim)
    gate: Linear  # (ffn_dim, dim)
    up: Linear  # (ffn_dim, dim)
    down: Linear  # (dim, ffn_dim)


@dataclass(frozen=True, eq=False)
class Llama:
    """The weights of a dense Llama."""

    config: ModelConfig
    token_embd: Table  # (vocab, dim)
    layers: tuple[Layer, ...]
    output_norm: Vector  # (dim)
    output: Matrix  # (vocab, dim); packed from token_embd when tied
    frequencies: Vector  # (rope_dim / 2) radians per position

    @classmethod
    def load(
        cls,
        file: GGUFFile,
        config: ModelConfig,
        pool: Any,
        on_bytes: Callable[[int, int], None] | None = None,
    ) -> Llama:
        """Reads and packs every tensor. Raises ModelError for what is missing, misshapen, left over or
        unsupported.
        """
        if config.arch != "llama" or config.n_experts:
            kind = f"{config.arch} with {config.n_experts} experts" if config.n_experts else config.arch
            raise ModelError(f"{file.paths[0]}: {kind} models cannot be run yet; dense llama models can")
        if isinstance(config.n_heads, tuple) or isinstance(config.kv_heads, tuple):
            raise ModelError(f"{file.paths[0]}: layers with different numbers of heads cannot be run")
        loader = WeightLoader(file, pool, on_bytes)
        rows = (
            file.tensors["token_embd.weight"].shape[0]
            if loader.has("token_embd.weight")
            else config.vocab_size
        )
        divisors = loader.optional_vector("rope_freqs.weight", config.rope_dim // 2)
        frequencies = inverse_frequencies(
            config, None if divisors is None else divisors.values[: divisors.size]
        )
        for i in range(config.n_layers):  # older files repeat what follows from the config
            loader.taken.add(f"blk.{i}.attn_rot_embd")
            loader.taken.add(f"blk.{i}.attn.rotary_emb.inv_freq")
        model = cls(
            config=config,
            token_embd=loader.table("token_embd.weight", rows, config.dim),
            layers=tuple(_layer(loader, config, i) for i in range(config.n_layers)),
            output_norm=loader.vector("output_norm.weight", config.dim),
            output=loader.matrix(
                "output.weight" if loader.has("output.weight") else "token_embd.weight", rows, config.dim
            ),
            frequencies=padded_vector("rope", np.asarray(frequencies)),
        )
        loader.finish()
        return model

    def record(self, plan: Recorder) -> None:
        c = self.config
        x = plan.embed(self.token_embd)
        rope = plan.rope_table(self.frequencies, c.rope_scaling.magnitude)
        for i, layer in enumerate(self.layers):
            h = plan.rms_norm(x, layer.attn_norm, c.norm_eps)
            q, k, v = (plan.linear(h, p.weight, p.bias) for p in (layer.q, layer.k, layer.v))
            q = plan.rope_store(q, k, v, rope, layer=i)
            a = plan.attention(q, layer=i, scale=c.score_scale, window=c.sliding_window)
            if i == len(self.layers) - 1:  # from here on only the rows that are asked for
                a, x = plan.select(a), plan.select(x)
            x = x + plan.linear(a, layer.o.weight, layer.o.bias)
            h = plan.rms_norm(x, layer.ffn_norm, c.norm_eps)
            gate, up = (plan.linear(h, p.weight, p.bias) for p in (layer.gate, layer.up))
            x = x + plan.linear(plan.silu_mul(gate, up), layer.down.weight, layer.down.bias)
        h = plan.rms_norm(x, self.output_norm, c.norm_eps)
        plan.output_hidden(h)
        plan.output_logits(h, self.output)


def _layer(loader: WeightLoader, c: ModelConfig, i: int) -> Layer:
    heads, kv_heads, ffn = c.layer_heads(i), c.layer_kv_heads(i), c.layer_ffn_dim(i)

    def linear(name: str, rows: int, cols: int) -> Linear:
        weight = loader.matrix(f"blk.{i}.{name}.weight", rows, cols)
        return Linear(weight, loader.optional_vector(f"blk.{i}.{name}.bias", rows))

    return Layer(
        attn_norm=loader.vector(f"blk.{i}.attn_norm.weight", c.dim),
        q=linear("attn_q", heads * c.head_dim, c.dim),
        k=linear("attn_k", kv_heads * c.head_dim, c.dim),
        v=linear("attn_v", kv_heads * c.value_dim, c.dim),
        o=linear("attn_output", c.dim, heads * c.value_dim),
        ffn_norm=loader.vector(f"blk.{i}.ffn_norm.weight", c.dim),
        gate=linear("ffn_gate", ffn, c.dim),
        up=linear("ffn_up", ffn, c.dim),
        down=linear("ffn_down", c.dim, ffn),
    )
