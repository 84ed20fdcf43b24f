"""Meta's checkpoints: parts of all ranks merged, whatever their number; none missing unnoticed.

Covers convert/formats/meta.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from checkpoint_build import write_safetensors
from torch_build import write_torch

from pyllamacpu.convert.checkpoint import open_checkpoint
from pyllamacpu.errors import CheckpointError

Array = npt.NDArray[Any]
DIM, N_HEADS, N_KV, HEAD, FF, VOCAB = 64, 8, 8, 8, 96, 40
PARAMS = {
    "dim": DIM,
    "n_heads": N_HEADS,
    "n_layers": 2,
    "multiple_of": 16,
    "norm_eps": 1e-5,
    "vocab_size": -1,
}


def whole_model(n_kv: int = N_KV) -> dict[str, Array]:
    rng = np.random.default_rng(6)

    def random(*shape: int) -> Array:
        return rng.integers(0, 1 << 16, shape).astype(np.uint16)  # any bits: bfloat16

    model = {"tok_embeddings.weight": random(VOCAB, DIM), "norm.weight": random(DIM), "rope.freqs": random(4)}
    for layer in range(2):
        p = f"layers.{layer}."
        model |= {
            p + "attention.wq.weight": random(N_HEADS * HEAD, DIM),
            p + "attention.wk.weight": random(n_kv * HEAD, DIM),
            p + "attention.wv.weight": random(n_kv * HEAD, DIM),
            p + "attention.wo.weight": random(DIM, N_HEADS * HEAD),
            p + "feed_forward.w1.weight": random(FF, DIM),
            p + "feed_forward.w2.weight": random(DIM, FF),
            p + "feed_forward.w3.weight": random(FF, DIM),
            p + "attention_norm.weight": random(DIM),
            p + "ffn_norm.weight": random(DIM),
        }
    return model | {"output.weight": random(VOCAB, DIM)}


def rank_part(name: str, array: Array, rank: int, n_ranks: int, llama3: bool, n_kv: int) -> Array:
    """What fairscale's layers keep of a tensor on one rank."""
    if ".wk." in name or ".wv." in name:
        copies = max(1, n_ranks // n_kv)
        return np.array_split(array, n_ranks // copies)[rank // copies]
    if "norm" in name or "freqs" in name:
        return array
    row_parallel = ".wo." in name or ".w2." in name or (name.startswith("tok") and not llama3)
    return np.ascontiguousarray(np.array_split(array, n_ranks, axis=int(row_parallel))[rank])


def write_model(
    folder: Path, n_ranks: int, llama3: bool = True, n_kv: int = N_KV, **params: Any
) -> dict[str, Array]:
    model = whole_model(n_kv)
    for rank in range(n_ranks):
        parts = {key: rank_part(key, value, rank, n_ranks, llama3, n_kv) for key, value in model.items()}
        write_torch(folder / f"consolidated.{rank:02}.pth", parts)
    (folder / "params.json").write_text(json.dumps(PARAMS | {"n_kv_heads": n_kv} | params))
    del model["rope.freqs"]
    return model


@pytest.mark.parametrize("llama3", [True, False])
@pytest.mark.parametrize("n_ranks", [1, 2, 4, 8])
def test_ranks_are_merged(tmp_path: Path, n_ranks: int, llama3: bool) -> None:
    model = write_model(tmp_path, n_ranks, llama3)
    checkpoint = open_checkpoint(tmp_path)
    assert (
        checkpoint.kind == "meta"
        and checkpoint.config["vocab_size"] == -1
        and len(checkpoint.files) == n_ranks
    )
    assert checkpoint.tensors.keys() == model.keys()
    assert open_checkpoint(tmp_path / "consolidated.00.pth").files == checkpoint.files
    for key, expected in model.items():
        found = checkpoint.tensors[key]
        assert found.dtype == "BF16" and np.array_equal(found.raw(), expected), key
        assert np.array_equal(found.raw(3, 17), expected[3:17])


def test_one_safetensors_file(tmp_path: Path) -> None:
    """The same layout as Mistral's releases have it."""
    model = write_model(tmp_path, 1)
    (tmp_path / "consolidated.00.pth").unlink()
    write_safetensors(tmp_path / "consolidated.safetensors", model, dict.fromkeys(model, "BF16"))
    for source in (tmp_path, tmp_path / "consolidated.safetensors"):
        checkpoint = open_checkpoint(source)
        assert checkpoint.kind == "meta" and checkpoint.tensors.keys() == model.keys()
        assert np.array_equal(checkpoint.tensors["output.weight"].raw(), model["output.weight"])


@pytest.mark.parametrize(("n_ranks", "n_kv"), [(8, 4), (8, 2), (8, 1), (4, 2), (2, 2)])
def test_fewer_key_value_heads_than_ranks(tmp_path: Path, n_ranks: int, n_kv: int) -> None:
    model = write_model(tmp_path, n_ranks, n_kv=n_kv)
    tensors = open_checkpoint(tmp_path).tensors
    for key, expected in model.items():
        assert np.array_equal(tensors[key].raw(), expected), key
    if n_ranks > n_kv:
        write_torch(tmp_path / "consolidated.01.pth", {k: v + 1 for k, v in read_rank(tmp_path, 1).items()})
        with pytest.raises(CheckpointError, match="should be a copy"):
            open_checkpoint(tmp_path)


def read_rank(folder: Path, rank: int) -> dict[str, Array]:
    from pyllamacpu.convert.formats.torch_file import read_torch

    return {key: found.raw() for key, found in read_torch(folder / f"consolidated.{rank:02}.pth").items()}


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_missing_ranks(tmp_path: Path, lost: int) -> None:
    write_model(tmp_path, 4)
    (tmp_path / f"consolidated.0{lost}.pth").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        open_checkpoint(tmp_path)


def test_params_that_do_not_fit(tmp_path: Path) -> None:
    write_model(tmp_path, 2)
    for key, value in (
        ("dim", 128),
        ("n_heads", 12),
        ("n_kv_heads", 3),
        ("head_dim", 16),
        ("dim", 0),
        ("dim", "64"),
        ("dim", None),
        ("n_heads", True),
        ("vocab_size", 80),
        ("quantization_args", {"scheme": "int4"}),
    ):
        (tmp_path / "params.json").write_text(json.dumps(PARAMS | {key: value}))
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path)
    (tmp_path / "params.json").unlink()
    with pytest.raises(CheckpointError, match=r"params\.json"):
        open_checkpoint(tmp_path)


def test_ranks_that_differ_and_unknown_tensors(tmp_path: Path) -> None:
    write_model(tmp_path, 2)
    rank = read_rank(tmp_path, 1)
    write_torch(
        tmp_path / "consolidated.01.pth", {k: v for k, v in rank.items() if "layers.1.ffn_norm" not in k}
    )
    with pytest.raises(CheckpointError, match=r"layers\.1\.ffn_norm"):
        open_checkpoint(tmp_path)
    for number in (0, 1):
        more = read_rank(tmp_path, 0) | {"layers.0.strange.weight": np.zeros((4, 4), np.float32)}
        write_torch(tmp_path / f"consolidated.0{number}.pth", more)
    with pytest.raises(CheckpointError, match=r"strange"):
        open_checkpoint(tmp_path)
    short = {k: v[:-1] if k == "layers.1.ffn_norm.weight" else v for k, v in rank.items()}
    write_model(tmp_path, 2)
    write_torch(tmp_path / "consolidated.01.pth", short)
    with pytest.raises(CheckpointError, match="differs"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("n_ranks", [1, 2, 4])
def test_llama_4(tmp_path: Path, n_ranks: int) -> None:
    rng = np.random.default_rng(7)

    def random(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    n_experts, ff, n_kv = 3, 16, 4
    q, k, v = random(64, DIM), random(n_kv * HEAD, DIM), random(n_kv * HEAD, DIM)
    w1, w3, w2 = random(FF, DIM), random(FF, DIM), random(DIM, FF)
    s1, s3, s2 = random(ff, DIM), random(ff, DIM), random(DIM, ff)
    e1, e3, e2 = random(n_experts, DIM, ff), random(n_experts, DIM, ff), random(n_experts, ff, DIM)
    norm, router, wo = random(DIM), random(DIM, n_experts), random(DIM, 64)

    def cut(array: Array, axis: int, rank: int) -> Array:
        return np.ascontiguousarray(np.array_split(array, n_ranks, axis)[rank])

    for rank in range(n_ranks):
        parts = {
            "layers.0.attention.wqkv.weight": np.concatenate([cut(x, 0, rank) for x in (q, k, v)]),
            "layers.0.attention.wqkv.layer_norm_weight": norm,
            "layers.0.attention.wo.weight": cut(wo, 1, rank),
            "layers.0.feed_forward.mlp.fc1_weight": np.concatenate([cut(x, 0, rank) for x in (w1, w3)]),
            "layers.0.feed_forward.mlp.fc2_weight": cut(w2, 1, rank),
            "layers.0.feed_forward.mlp.layer_norm_weight": norm + 1,
            "layers.1.feed_forward.norm.weight": norm + 2,
            "layers.1.feed_forward.router_DE": router,
            "layers.1.feed_forward.w_in_shared_FD.weight": cut(s1, 0, rank),
            "layers.1.feed_forward.w_swiglu_FD.weight": cut(s3, 0, rank),
            "layers.1.feed_forward.w_out_shared_DF.weight": cut(s2, 1, rank),
            "layers.1.feed_forward.experts.moe_w_in_eD_F": cut(e1, 2, rank).reshape(n_experts * DIM, -1),
            "layers.1.feed_forward.experts.moe_w_swiglu_eD_F": cut(e3, 2, rank).reshape(n_experts * DIM, -1),
            "layers.1.feed_forward.experts.moe_w_out_eF_D": cut(e2, 1, rank).reshape(-1, DIM),
        }
        write_torch(tmp_path / f"consolidated.{rank:02}.pth", parts)
    params = PARAMS | {"n_kv_heads": n_kv, "moe_args": {"num_experts": n_experts}}
    (tmp_path / "params.json").write_text(json.dumps(params))
    expected = {
        "layers.0.attention.wq.weight": q,
        "layers.0.attention.wk.weight": k,
        "layers.0.attention.wv.weight": v,
        "layers.0.attention.wo.weight": wo,
        "layers.0.attention_norm.weight": norm,
        "layers.0.ffn_norm.weight": norm + 1,
        "layers.0.feed_forward.w1.weight": w1,
        "layers.0.feed_forward.w2.weight": w2,
        "layers.0.feed_forward.w3.weight": w3,
        "layers.1.ffn_norm.weight": norm + 2,
        "layers.1.feed_forward.router_DE": router,
        "layers.1.feed_forward.shared_expert.w1.weight": s1,
        "layers.1.feed_forward.shared_expert.w2.weight": s2,
        "layers.1.feed_forward.shared_expert.w3.weight": s3,
        "layers.1.feed_forward.experts.moe_w_in_eD_F": e1,
        "layers.1.feed_forward.experts.moe_w_swiglu_eD_F": e3,
        "layers.1.feed_forward.experts.moe_w_out_eF_D": e2,
    }
    tensors = open_checkpoint(tmp_path).tensors
    assert tensors.keys() == expected.keys()
    for key, array in expected.items():
        assert np.array_equal(tensors[key].read(), array), key
