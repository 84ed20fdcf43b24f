"""Quantizing a file: every row in its place, with its importance; test_weights_output.py has the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from quantize_model import arrays, values, write_matrix, write_model

from pyllamacpu.errors import CheckpointError, GGUFError, ModelError
from pyllamacpu.gguf import GGUFFile, TensorType
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.quantize.driver import run
from pyllamacpu.quantize.file_types import parse_file_type
from pyllamacpu.quantize.imatrix import Imatrix, ImatrixEntry, read_imatrix
from pyllamacpu.quantize.plan import Settings, make_plan
from pyllamacpu.quantize.recipes import TypeOptions
from pyllamacpu.weights import stream
from pyllamacpu.weights.blocks import quantize

T = TensorType
EXPERTS = "blk.0.ffn_up_exps.weight"


def quantized(source: Path, out: Path, kind: str = "Q8_0", threads: int = 2, **settings: object) -> list:
    with GGUFFile.open(source) as file:
        plan = make_plan(file, Settings(parse_file_type(kind), **settings))  # type: ignore[arg-type]
        return list(run(plan, out, threads))


def with_experts(path: Path) -> tuple[Path, np.ndarray]:
    tensors = arrays(layers=1)
    tensors[EXPERTS] = values((5, 33, 96), 3)
    return write_model(path, tensors, llama__block_count=1, llama__expert_count=5), tensors[EXPERTS]


@pytest.mark.parametrize("slab", [1, 96 * 7, 96 * 33, 1 << 20])
@pytest.mark.parametrize("threads", [1, 3])
def test_slabs_and_threads_change_nothing(
    slab: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, experts = with_experts(tmp_path / "in.gguf")
    importance = np.abs(values((5, 96), 5)) * 9 + 0.5
    matrix = Imatrix({EXPERTS: ImatrixEntry(importance, np.ones(5, np.int64))}, ("t",), 1, 8)
    monkeypatch.setattr(stream, "SLAB", slab)
    quantized(source, tmp_path / "out.gguf", threads=threads, imatrix=matrix)
    with GGUFFile.open(tmp_path / "out.gguf") as file:
        expected = [quantize(experts[i], T.Q8_0, importance[i]) for i in range(5)]
        np.testing.assert_array_equal(file.data(EXPERTS), np.concatenate(expected).ravel())
        whole = quantize(arrays(layers=1)["output.weight"], T.Q8_0)
        np.testing.assert_array_equal(file.data("output.weight"), whole.ravel())


def test_each_expert_has_its_own_importance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bytes]] = []

    def noting(rows, kind, importance=None, **others):  # type: ignore[no-untyped-def]
        seen.append((len(rows), b"" if importance is None else importance.tobytes()))
        return quantize(rows, kind, None, **others)

    monkeypatch.setattr(stream, "quantize", noting)
    source, _ = with_experts(tmp_path / "in.gguf")
    importance = np.abs(values((5, 96), 5)) + 0.5
    matrix = Imatrix({EXPERTS: ImatrixEntry(importance, np.ones(5, np.int64))}, ("t",), 1, 8)
    quantized(source, tmp_path / "out.gguf", threads=1, imatrix=matrix)
    assert [weights for _, weights in seen if weights] == [row.tobytes() for row in importance]


def test_all_float_sources_and_quantized_ones(tmp_path: Path) -> None:
    plain = arrays()
    sources = {
        T.F16: {name: a.astype(np.float16) if a.ndim > 1 else a for name, a in plain.items()},
        T.BF16: {
            name: (a.view(np.uint32) >> 16).astype(np.uint16) for name, a in plain.items() if a.ndim > 1
        },
        T.Q8_0: {name: quantize(a, T.Q8_0) for name, a in plain.items() if a.ndim > 1},
    }
    name = "blk.3.ffn_up.weight"
    for kind, changed in sources.items():
        kinds = {key: kind for key, a in plain.items() if a.ndim > 1}
        path = write_model(tmp_path / f"{kind.name}.gguf", {**plain, **changed}, kinds=kinds)
        quantized(path, tmp_path / "out.gguf", "Q8_0" if kind != T.Q8_0 else "F16", allow_requantize=True)
        with GGUFFile.open(path) as source, GGUFFile.open(tmp_path / "out.gguf") as out:
            numbers = dequantize(source.data(name), kind, plain[name].shape)
            target = T.Q8_0 if kind != T.Q8_0 else T.F16
            assert out.tensors[name].type == target
            np.testing.assert_array_equal(out.data(name), quantize(numbers, target).ravel())
            np.testing.assert_array_equal(out.data("output_norm.weight"), source.data("output_norm.weight"))


def test_rows_of_a_bad_weight_are_counted_from_the_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SLAB", 96 * 10)
    source, experts = with_experts(tmp_path / "in.gguf")
    tensors = {**arrays(layers=1), EXPERTS: experts}
    tensors[EXPERTS][3, 20, 5] = -np.inf
    write_model(source, tensors, llama__block_count=1, llama__expert_count=5)
    for kind in ("Q8_0", "COPY"):
        with pytest.raises(CheckpointError, match=f"row {3 * 33 + 20}, column 5 holds -inf"):
            quantized(source, tmp_path / "out.gguf", kind)


def test_whole_numbers_are_copied(tmp_path: Path) -> None:
    tensors = {**arrays(), "table.weight": np.arange(64, dtype=np.int32).reshape(2, 32)}
    source = write_model(tmp_path / "in.gguf", tensors)
    quantized(source, tmp_path / "copy.gguf", "COPY")
    with GGUFFile.open(tmp_path / "copy.gguf") as file:
        assert (file.data("table.weight").view(np.int32) == np.arange(64)).all()
    with pytest.raises(ModelError, match=r"'table\.weight': tensors of type I32 cannot be decoded"):
        quantized(source, tmp_path / "out.gguf")


def test_pruning_moves_layers_up_with_their_importance(tmp_path: Path) -> None:
    per_layer = np.array([2, 2, 4, 4], np.int32)
    source = write_model(tmp_path / "in.gguf", llama__attention__head_count_kv=per_layer)
    matrix = read_imatrix(write_matrix(tmp_path / "matrix.gguf"))
    settings = Settings(parse_file_type("Q8_0"), imatrix=matrix, prune=frozenset({0, 2}))
    with GGUFFile.open(source) as file:
        plan = make_plan(file, settings)
        step = next(step for step in plan.tensors if step.name == "blk.1.attn_q.weight")
        assert step.source.name == "blk.3.attn_q.weight"
        expected = matrix.importance("blk.3.attn_q.weight")
        np.testing.assert_array_equal(plan.importance(step), expected)
        list(run(plan, tmp_path / "out.gguf"))
    with GGUFFile.open(tmp_path / "out.gguf") as out:
        assert out.metadata["llama.block_count"] == 2
        np.testing.assert_array_equal(out.metadata["llama.attention.head_count_kv"], [2, 4])
        assert not [name for name in out.tensors if name.startswith(("blk.2", "blk.3"))]
        kept = quantize(arrays()["blk.3.attn_q.weight"], T.Q8_0)
        np.testing.assert_array_equal(out.data("blk.1.attn_q.weight"), kept.ravel())


def test_importance_of_the_embedding_may_have_any_size(tmp_path: Path) -> None:
    entry = ImatrixEntry(np.ones((1, 7)), np.ones(1, np.int64))
    source = write_model(tmp_path / "in.gguf")
    quantized(source, tmp_path / "out.gguf", imatrix=Imatrix({"token_embd.weight": entry}))
    with pytest.raises(GGUFError, match="another model"):
        quantized(source, tmp_path / "out.gguf", imatrix=Imatrix({"output.weight": entry}))


def test_importance_of_unknown_tensors_is_noted(tmp_path: Path) -> None:
    entry = ImatrixEntry(np.ones((1, 32)), np.ones(1, np.int64))
    with GGUFFile.open(write_model(tmp_path / "in.gguf")) as file:
        plan = make_plan(file, Settings(parse_file_type("Q8_0"), imatrix=Imatrix({"blk.9.x": entry})))
    assert plan.notes == ("the importance matrix has 1 entries that the model has not: blk.9.x",)


def test_types_that_are_forced_still_have_to_fit(tmp_path: Path) -> None:
    with GGUFFile.open(write_model(tmp_path / "in.gguf")) as file:
        settings = Settings(parse_file_type("F16"), TypeOptions(output=T.Q6_K))
        plan = make_plan(file, settings)
    assert {step.name: step.kind for step in plan.tensors}["output.weight"] == T.Q8_0
    assert "output.weight: rows of 32 are not a multiple of 256" in plan.notes[0]
