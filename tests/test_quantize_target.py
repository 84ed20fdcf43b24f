"""Quantizing to a size: texts to measure on, substituted weights, predictions, and the command.

Covers cli/quantize_target.py, quantize/costs.py, quantize/report.py, model/weight_override.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny_model
from cli_letters import Result, cli_home, run  # noqa: F401
from quantize_model import arrays, values, write_matrix, write_model

from pyllamacpu.engine.engine import Engine
from pyllamacpu.errors import ContextError, ModelError, OptionError
from pyllamacpu.evaluate import divergence_from, record
from pyllamacpu.gguf import GGUFFile, TensorType
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.quantize import driver, target
from pyllamacpu.quantize.calibrate import draw, sampled_windows, text_windows
from pyllamacpu.quantize.file_types import parse_file_type
from pyllamacpu.quantize.imatrix import read_imatrix
from pyllamacpu.quantize.plan import Settings, make_plan, with_types
from pyllamacpu.quantize.recipes import TypeOptions
from pyllamacpu.quantize.sensitivity import candidates, groups, kinds_for, measure_errors, probe_kind
from pyllamacpu.quantize.target import (
    Measured,
    Target,
    budget,
    check,
    choose,
    chosen_plan,
    curve,
    measure,
    open_engine,
    runnable,
    some_windows,
)
from pyllamacpu.weights.blocks import quantize

T = TensorType
COPY = Settings(parse_file_type("COPY"))
Run = Callable[..., Result]


def quiet(text: str, done: int, total: int) -> None:
    assert 0 <= done <= total and text


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("target") / "model.gguf")


@pytest.fixture
def file(source: Path) -> Iterator[GGUFFile]:
    with GGUFFile.open(source) as opened:
        yield opened


@pytest.fixture
def engine(source: Path) -> Iterator[Engine]:
    opened = open_engine(GGUFFile.open(source))
    yield opened
    opened.close()


# Substituted weights


def test_replaced_weights_run_as_those_of_a_file(file: GGUFFile, engine: Engine, tmp_path: Path) -> None:
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    names = ("blk.1.ffn_up.weight", "blk.2.attn_k.weight", "token_embd.weight", "output.weight")
    before = engine.eval(engine.sequence(), tokens).copy()
    blocks = {name: (T.Q4_0, quantize(arrays()[name], T.Q4_0)) for name in names}
    with engine.replaced(blocks):
        replaced = engine.eval(engine.sequence(), tokens).copy()
    types = dict.fromkeys(names, T.Q4_0)
    list(
        driver.run(make_plan(file, with_types(Settings(parse_file_type("F32")), types)), tmp_path / "o.gguf")
    )
    other = open_engine(GGUFFile.open(tmp_path / "o.gguf"))
    np.testing.assert_array_equal(replaced, other.eval(other.sequence(), tokens))
    other.close()
    assert not np.array_equal(replaced, before)
    np.testing.assert_array_equal(engine.eval(engine.sequence(), tokens), before)


def test_only_matrices_that_fit_are_replaced(engine: Engine) -> None:
    rows = quantize(arrays()["blk.0.attn_q.weight"], T.Q8_0)
    for blocks, says in (
        ({"blk.9.attn_q.weight": (T.Q8_0, rows)}, "no matrix 'blk.9.attn_q.weight'"),
        ({"blk.0.attn_q.weight": (T.Q4_0, rows)}, "are no Q4_0 of 32 x 32"),
    ):
        with pytest.raises(ModelError, match=says), engine.replaced(blocks):
            pass
    assert engine.eval(engine.sequence(), [1]).shape == (1, 40)


# Texts


def test_a_model_writes_the_same_text_for_the_same_seed(engine: Engine) -> None:
    first, again, other = (sampled_windows(engine, 256, 32, seed) for seed in (7, 7, 8))
    assert first.tokens.shape == (8, 32) and first.bos is None
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert not np.array_equal(first.tokens, other.tokens)
    assert len({row.tobytes() for row in first.tokens}) == 8


def test_samples_follow_the_probabilities() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.2]], np.float32)).repeat(20000, axis=0)
    shares = np.bincount(draw(logits, np.random.default_rng(0)), minlength=3) / 20000
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.015)


def test_a_text_of_the_user(tmp_path: Path, file: GGUFFile) -> None:
    tiny = tiny_model.write_model(tmp_path / "tiny.gguf")
    text = tmp_path / "text.txt"
    text.write_text("hello the world " * 40)
    with GGUFFile.open(tiny) as opened:
        cut = text_windows(opened.metadata, text, 100, 32)
        assert cut.tokens.shape == (3, 32) and cut.bos == tiny_model.BOS
        text.write_text("too short")
        with pytest.raises(ContextError):
            text_windows(opened.metadata, text, 100, 32)
        text.write_bytes(b"\xff\xfe\xfa")
        with pytest.raises(OptionError, match="UTF-8"):
            text_windows(opened.metadata, text, 100, 32)
    with pytest.raises(ModelError, match="no tokenizer"):
        text_windows(file.metadata, text, 100, 32)


def test_some_windows_are_spread_over_all(engine: Engine) -> None:
    cut = sampled_windows(engine, 256, 32)
    some = some_windows(cut, 100)
    np.testing.assert_array_equal(some.tokens, cut.tokens[[0, 2, 5]])
    assert some_windows(cut, 1).n_windows == 1 and some_windows(cut, 9999).n_windows == 8


# Errors and costs


def test_errors_are_those_of_the_types(file: GGUFFile) -> None:
    name = "blk.1.ffn_down.weight"
    info, weight = file.tensors[name], np.abs(values((1, 64), 5)) + 0.1
    found = measure_errors(file, info, weight, [T.Q4_0, T.Q8_0])
    rows = arrays()[name].astype(np.float64)
    for kind in (T.Q4_0, T.Q8_0):
        decoded = dequantize(quantize(arrays()[name], kind, weight[0]), kind, rows.shape)
        expected = ((decoded - rows) ** 2 * weight).sum() / (rows**2 * weight).sum()
        assert found.of[kind] == pytest.approx(expected, rel=1e-5)
    assert found.of[T.F32] == 0.0
    assert [c.cost for c in candidates(found, 2.0)] == [2.0 * error for error in found.of.values()]


def test_types_that_a_tensor_can_have(file: GGUFFile) -> None:
    info = file.tensors["blk.1.ffn_down.weight"]
    narrow = kinds_for(info, None, 4.5)
    assert narrow == [T.IQ4_NL, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.F16]
    wide = replace(info, shape=(32, 512))
    kinds = kinds_for(wide, np.ones((1, 512), np.float32), 3.0)
    assert {T.Q2_K, T.Q3_K, T.Q4_K, T.IQ4_XS, T.Q6_K} <= {*kinds} and T.IQ1_S not in kinds
    assert T.Q2_K not in kinds_for(wide, None, 3.0)  # too low without importance
    assert T.Q8_0 not in kinds_for(replace(info, type=T.Q8_0), None, 4.5)  # as it is, or smaller


def test_probes_are_near_the_size_wanted(file: GGUFFile) -> None:
    errors = measure_errors(file, file.tensors["output.weight"], None, [T.Q4_0, T.Q5_0, T.Q8_0])
    assert [probe_kind(errors, bits) for bits in (3.0, 5.0, 6.0)] == [T.Q4_0, T.Q4_0, T.Q5_0]
    assert probe_kind(replace(errors, of={T.Q4_0: 1e-9, T.F32: 0.0}), 5.0) is None


def test_large_models_are_probed_in_groups(file: GGUFFile) -> None:
    infos = [info for info in file.tensors.values() if len(info.shape) > 1]
    assert all(len(group) == 1 for group in groups(infos, 4))
    large = [replace(info, n_elements=1 << 28) for info in infos]
    many = [replace(info, name=info.name.replace("blk.0", f"blk.{i}")) for i in range(32) for info in large]
    names = {info.name: info for info in many}
    found = groups([*names.values()], 32)
    assert len(found) == 7 * 8 + 2 and max(len(group) for group in found) == 4


# All of it


@pytest.fixture(scope="module")
def measured(source: Path) -> Measured:
    with GGUFFile.open(source) as file, runnable(file, source.parent) as same:
        engine = open_engine(same)
        cut = sampled_windows(engine, 512, 64)
        found = measure(file, engine, cut, COPY, 5.0, quiet)
        engine.close()
    return found


def test_a_model_that_fills_memory_is_measured_in_eight_bits(
    file: GGUFFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with runnable(file, tmp_path / "out.gguf") as same:
        assert same.paths == file.paths
    monkeypatch.setattr(target, "memory_usable", lambda: file.n_bytes)
    with runnable(file, tmp_path / "out.gguf") as small:
        assert {info.type for info in small.tensors.values()} == {T.Q8_0, T.F32}
    assert not list(tmp_path.iterdir())


def test_more_bytes_cost_less(measured: Measured) -> None:
    points = curve(measured)
    assert all(a[0] <= b[0] and a[1] >= b[1] for a, b in pairwise(points))
    assert points[0][1] > 4 * points[-1][1]


def test_what_is_chosen_beats_one_type_and_keeps_the_size(
    measured: Measured, file: GGUFFile, tmp_path: Path
) -> None:
    found = {}
    for kind in ("Q4_1", "Q5_1"):
        plain = make_plan(file, Settings(parse_file_type(kind), TypeOptions(pure=True)))
        chosen = choose(measured, plain.n_bytes)
        ours = chosen_plan(file, COPY, chosen)
        assert ours.n_bytes == chosen.n_bytes <= plain.n_bytes
        list(driver.run(plain, tmp_path / "plain.gguf"))
        list(driver.run(ours, tmp_path / "ours.gguf"))
        theirs = check(tmp_path / "plain.gguf", measured.base).mean_kld.value
        found[kind] = check(tmp_path / "ours.gguf", measured.base).mean_kld.value
        assert found[kind] < 0.8 * theirs
        assert chosen.predicted / 5 < found[kind] < chosen.predicted * 5
    assert found["Q5_1"] < found["Q4_1"]


def test_types_that_are_told_are_kept(file: GGUFFile, engine: Engine) -> None:
    types = TypeOptions(by_name=((re.compile("ffn_down"), T.Q8_0),), embedding=T.Q4_1)
    settings = replace(COPY, types=types)
    cut = sampled_windows(engine, 64, 32)
    found = measure(file, engine, cut, settings, 5.0, quiet)
    plan = make_plan(file, Settings(parse_file_type("Q5_0")))
    kinds = {
        step.name: step.kind
        for step in chosen_plan(file, settings, choose(found, plan.n_bytes, types)).tensors
    }
    assert kinds["token_embd.weight"] == T.Q4_1
    assert {kind for name, kind in kinds.items() if "ffn_down" in name} == {T.Q8_0}


def test_budgets(file: GGUFFile) -> None:
    elements = sum(info.n_elements for info in file.tensors.values())
    assert budget(file, Target(bits=4.0)) == elements // 2
    room = budget(file, Target(n_bytes=100_000))
    assert 80_000 < room < 100_000 - 1000
    with pytest.raises(OptionError, match="hold no model"):
        budget(file, Target(n_bytes=2000))


# The command


def test_from_a_size_to_a_file(source: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out.gguf"
    few = ("--calibration-tokens", "512", "--probe-tokens", "256")
    result = run("quantize", "--target-size", "40kB", "--report", *few, str(source), str(out))
    assert result.code == 0, result.err
    assert 30_000 < out.stat().st_size <= 40_000
    for word in ("mean KLD", "same top", "perplexity", "attn_output", "predicted"):
        assert word in result.out
    assert "what the model minds …" in result.err
    row = json.loads((tmp_path / "out-report.json").read_text())
    assert row["bytes"] == out.stat().st_size and len(row["tensors"]) == 4 * 7 + 2
    assert sum(item["bytes"] for item in row["tensors"]) <= 40_000
    assert row["measured"]["kld"] > 0 and row["predicted_kld"] > 0
    text = (tmp_path / "out-report.md").read_text()
    assert text.startswith("# out.gguf\n") and "| blk.3.ffn_up.weight | " in text
    with GGUFFile.open(out) as file:
        types = {item["name"]: item["type"] for item in row["tensors"]}
        assert {name: file.tensors[name].type.name for name in types} == types
        assert file.metadata["quantize.imatrix.entries_count"] == 4 * 7 + 1
        assert file.metadata["quantize.imatrix.dataset"] == "a text that the model wrote"
    assert not list(source.parent.glob(".*"))


def test_importance_that_is_given_is_used(source: Path, tmp_path: Path, run: Run) -> None:
    matrix, out = write_matrix(tmp_path / "matrix.gguf"), tmp_path / "out.gguf"
    few = ("--calibration-tokens", "256", "--probe-tokens", "256", "--imatrix", str(matrix))
    assert run("quantize", "--target-bpw", "5.5", *few, str(source), str(out)).code == 0
    with GGUFFile.open(out) as file:
        assert file.metadata["quantize.imatrix.file"] == str(matrix)
        n_bytes = sum(info.n_bytes for info in file.tensors.values())
        assert 5.0 < 8 * n_bytes / sum(info.n_elements for info in file.tensors.values()) <= 5.5
    assert len(read_imatrix(matrix).entries) == 28


@pytest.mark.parametrize(
    ("args", "says", "code"),
    [
        (["--target-size", "40kB", "--target-bpw", "4", "model.gguf"], "give one", 2),
        (["--target-size", "lots", "model.gguf"], "is not a size", 2),
        (["--target-bpw", "4", "--pure", "model.gguf"], "types are chosen", 2),
        (["--target-bpw", "4"], "an input is needed", 2),
        (["--target-bpw", "4", "model.gguf", "Q4_K_M"], "exclude each other", 2),
        (["--report", "model.gguf", "Q4_0"], "goes with --target-size", 2),
        (["--probe-tokens", "999", "model.gguf", "Q4_0"], "--probe-tokens goes with", 2),
        (["--target-size", "900", "model.gguf", "out.gguf"], "hold no model", 1),
        (["--target-bpw", "2", "model.gguf", "out.gguf"], "choose a larger target", 1),
    ],
)
def test_wrong_targets(
    args: list[str], says: str, code: int, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model.gguf")
    few = ["--calibration-tokens", "256"] if code == 1 else []
    result = run("quantize", *few, *args)
    assert (result.code, says in result.err) == (code, True), result.err
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_divergence_of_the_same_weights_is_none(engine: Engine) -> None:
    cut = sampled_windows(engine, 64, 32)
    assert divergence_from(record(engine, cut), engine).mean_kld.value == 0.0
