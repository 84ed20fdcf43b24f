"""Collecting importance matrices: sums of squares of each weight's input, against a model in numpy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from llama4_models import FOLDER as LLAMA4
from llama4_models import llama4, opened
from numpy_tiny import NumpyTiny
from tiny_model import BOS, DIM, FFN, LAYERS, PIECES, write_model

from pyllamacpu.engine.engine import Engine, Entry
from pyllamacpu.errors import ContextError, ModelError, OptionError
from pyllamacpu.evaluate import perplexity
from pyllamacpu.evaluate.windows import windows
from pyllamacpu.gguf import GGUFWriter
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.graph.passes import InputSquares
from pyllamacpu.quantize.collect import Collector, collect, merged
from pyllamacpu.quantize.imatrix import Imatrix, ImatrixEntry, read_imatrix, write_imatrix

__all__ = ["llama4"]

TOKENS = np.random.default_rng(4).integers(6, len(PIECES), 300).tolist()
N_CTX = 64
SHAPES = Path(__file__).parent / "fixtures" / "logits"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("collect") / "tiny.gguf")


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    """The squares of each weight's input, summed over all windows in float64."""
    model, sums = NumpyTiny(), {}
    for start in range(0, len(TOKENS) - N_CTX + 1, N_CTX):
        _, found = model.run([BOS, *TOKENS[start + 1 : start + N_CTX]])
        for name, x in found.items():
            sums[name] = sums.get(name, 0.0) + (x * x).sum(0)
    return sums


@pytest.fixture(params=[True, False])
def with_perplexity(request: pytest.FixtureRequest) -> Iterator[bool]:
    yield request.param


def test_sums_as_in_numpy(path: Path, inputs: dict[str, np.ndarray], with_perplexity: bool) -> None:
    cut = windows(TOKENS, N_CTX, bos=BOS)
    f32 = {"type_k": "f32", "type_v": "f32"}
    found = collect(path, cut, process_output=True, with_perplexity=with_perplexity, n_threads=2, **f32)
    entries = found.imatrix.entries
    assert set(entries) == set(inputs)
    for name, want in inputs.items():
        assert entries[name].sums.shape == (1, FFN if "down" in name else DIM)
        assert entries[name].sums[0] == pytest.approx(want, rel=2e-5)
        assert entries[name].counts.tolist() == [4 * N_CTX]
    assert (found.imatrix.chunk_count, found.imatrix.chunk_size) == (4, N_CTX)
    if with_perplexity:
        engine = Engine.open(path, n_ctx=N_CTX, **f32)
        assert found.nll == perplexity(engine, cut).nll
        engine.close()
    else:
        assert found.nll is None


def test_the_output_matrix_only_when_asked_for(path: Path) -> None:
    names = set(collect(path, windows(TOKENS, N_CTX)).imatrix.entries)
    assert len(names) == 7 * LAYERS and "output.weight" not in names


@pytest.mark.parametrize("shape", ["gqa3", "head40", "bf16_biases", "mixed_q4_k_m", "q8_0", "iq2_xs"])
def test_threads_and_steps_change_no_bit(shape: str, with_perplexity: bool) -> None:
    results = []
    with GGUFFile.open(SHAPES / f"{shape}.gguf") as file:
        n_vocab = file.tensors["token_embd.weight"].shape[0]
    tokens = np.random.default_rng(1).integers(0, n_vocab, 400)
    for n_threads, n_batch in ((1, 128), (2, 128), (3, 50), (2, 17)):
        options = {"n_threads": n_threads, "n_batch": n_batch, "n_ctx": 128}
        found = collect(
            SHAPES / f"{shape}.gguf", windows(tokens, 128), with_perplexity=with_perplexity, **options
        )
        results.append(found.imatrix.entries)
    for other in results[1:]:
        for name, entry in results[0].items():
            assert np.array_equal(entry.sums, other[name].sums), name
            assert entry.sums.min() >= 0 and entry.sums.max() > 0


def test_weights_with_one_input_share_their_sums(path: Path) -> None:
    entries = collect(path, windows(TOKENS, N_CTX)).imatrix.entries
    assert np.array_equal(entries["blk.0.attn_q.weight"].sums, entries["blk.0.attn_v.weight"].sums)
    assert not np.array_equal(entries["blk.0.attn_q.weight"].sums, entries["blk.0.ffn_up.weight"].sums)


def test_collecting_changes_no_logits_and_normal_plans_do_not_collect(path: Path) -> None:
    collector, plain = Collector(path, n_ctx=N_CTX), Engine.open(path, n_ctx=N_CTX)
    rows = [e.eval(e.sequence(), TOKENS[:50], logits="all") for e in (collector.engine, plain)]
    assert np.array_equal(*rows)
    assert collector.engine.plan.names.count("squares") == 4 * LAYERS + 1
    assert "squares" not in plain.plan.names
    collector.close()
    plain.close()


def test_a_tied_output_goes_by_the_name_of_its_tensor(path: Path, tmp_path: Path) -> None:
    tied = tmp_path / "tied.gguf"
    with GGUFFile.open(path) as file, GGUFWriter(tied) as writer:
        writer.copy_metadata(file.metadata)
        for name, info in file.tensors.items():
            if name != "output.weight":
                writer.add_array(name, file.data(name).view("<f4").reshape(info.shape))
    found = collect(tied, windows(TOKENS, N_CTX), process_output=True).imatrix.entries
    assert "token_embd.weight" in found and "output.weight" not in found
    assert "token_embd.weight" not in collect(tied, windows(TOKENS, N_CTX)).imatrix.entries


@pytest.mark.parametrize("name", ["scout_8192", "maverick"])
def test_each_expert_has_its_own_sums(name: str, llama4: dict[str, Path]) -> None:
    """Against transformers; down's inputs are what gate and up make of them."""
    with np.load(LLAMA4 / f"{name}.npz") as data:
        ids, wanted, counts = data["ids"].tolist(), data["squares"], data["counts"]
    found = []
    for n_threads, n_batch in ((1, 700), (2, 128), (3, 17)):
        sums: InputSquares = {}
        engine = opened(llama4[name], n_threads=n_threads, n_batch=n_batch, input_squares=sums)
        sequence = engine.sequence()
        for at in range(0, len(ids), n_batch):
            engine.read([Entry(sequence, ids[at : at + n_batch], "all")])
        engine.close()
        found.append(sums)
    up, down = (found[0][f"blk.3.ffn_{part}_exps.weight"] for part in ("up", "down"))
    assert up.sums == pytest.approx(wanted, rel=1e-4) and up.counts.tolist() == counts.tolist()
    assert up is found[0]["blk.3.ffn_gate_exps.weight"]
    assert np.array_equal(down.counts, up.counts) and down.sums.shape[1] == 32
    assert ((down.sums > 0).all(1) == (up.counts > 0)).all()
    for other in found[1:]:
        for key, squares in found[0].items():
            assert np.array_equal(squares.sums, other[key].sums)
            assert squares.counts is None or np.array_equal(squares.counts, other[key].counts)


def test_experts_in_files_of_either_format(llama4: dict[str, Path], tmp_path: Path) -> None:
    """Also one that no token came to."""
    collector = Collector(llama4["maverick"], n_ctx=16)
    collector.read(windows(np.arange(6, 22), 16), with_perplexity=False)
    imatrix = collector.imatrix(16, ["text"])
    collector.close()
    entry = imatrix.entries["blk.3.ffn_down_exps.weight"]
    assert entry.sums.shape == (12, 32) and entry.counts.sum() == 16 and entry.counts.min() == 0
    assert (entry.importance()[entry.counts == 0] == 1).all()
    write_imatrix(tmp_path / "i.gguf", imatrix)
    again = read_imatrix(tmp_path / "i.gguf").entries["blk.3.ffn_down_exps.weight"]
    assert np.array_equal(again.counts, entry.counts) and again.sums == pytest.approx(entry.sums)
    write_imatrix(tmp_path / "i.dat", imatrix, legacy=True)
    means = read_imatrix(tmp_path / "i.dat").importance("blk.3.ffn_down_exps.weight")
    assert means is not None and means.reshape(12, 32) == pytest.approx(entry.importance())


def test_a_copy_so_far_is_no_view(path: Path) -> None:
    collector = Collector(path, n_ctx=N_CTX)
    copies: list[Imatrix] = []
    collector.read(windows(TOKENS, N_CTX), on_window=lambda *_: copies.append(collector.imatrix(N_CTX)))
    collector.close()
    sums = [copy.entries["blk.1.ffn_down.weight"].sums.sum() for copy in copies]
    assert [copy.chunk_count for copy in copies] == [1, 2, 3, 4] and sums == sorted(set(sums))


def test_what_cannot_be_collected(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ContextError, match="trained with 256"):
        collect(path, windows(TOKENS, 300), n_ctx=512)
    broken = tmp_path / "nan.gguf"
    data = bytearray(write_model(broken).read_bytes())
    with GGUFFile.open(broken) as file:
        at = bytes(data).index(file.data("blk.0.ffn_up.weight")[:64].tobytes())
    data[at : at + 4] = np.float32(np.nan).tobytes()
    broken.write_bytes(data)
    with pytest.raises(ModelError, match=r"blk\.0\.ffn_down\.weight: its input holds NaN"):
        collect(broken, windows(TOKENS, N_CTX), with_perplexity=False)


# Files and merging


def test_files_hold_what_was_collected(path: Path, tmp_path: Path) -> None:
    found = collect(path, windows(TOKENS, N_CTX), datasets=["text.txt"]).imatrix
    for legacy in (False, True):
        write_imatrix(tmp_path / "imatrix", found, legacy=legacy)
        again = read_imatrix(tmp_path / "imatrix")
        assert set(again.entries) == set(found.entries) and again.datasets == ("text.txt",)
        for name in found.entries:
            assert again.importance(name) == pytest.approx(found.importance(name), rel=1e-6)


def test_merging_is_reading_both_texts(path: Path, tmp_path: Path) -> None:
    halves = [collect(path, windows(part, N_CTX)).imatrix for part in (TOKENS[:128], TOKENS[128:])]
    whole = collect(path, windows(TOKENS, N_CTX), datasets=["a"]).imatrix
    both = merged(halves, N_CTX)
    assert (both.chunk_count, both.chunk_size) == (whole.chunk_count, N_CTX)
    for name, entry in whole.entries.items():
        assert both.entries[name].sums == pytest.approx(entry.sums, rel=1e-12)
        assert both.entries[name].counts.tolist() == entry.counts.tolist()
    write_imatrix(tmp_path / "old.dat", halves[0], legacy=True)
    older = merged([read_imatrix(tmp_path / "old.dat"), halves[1]], N_CTX)
    for name in whole.entries:
        assert older.importance(name) == pytest.approx(whole.importance(name), rel=1e-6)
        assert older.entries[name].counts.tolist() == [256]


def test_matrices_of_different_models_do_not_merge() -> None:
    a = Imatrix({"w": ImatrixEntry(np.ones((1, 32)), np.array([64]))})
    b = Imatrix({"w": ImatrixEntry(np.ones((1, 64)), np.array([64]))})
    with pytest.raises(OptionError, match="32 and 64 columns for w"):
        merged([a, b], 64)
    other = Imatrix({"v": ImatrixEntry(np.ones((1, 64)), np.array([640]))})
    assert set(merged([a, other], 64).entries) == {"v", "w"}
    assert merged([a, other], 64).chunk_count == 10
