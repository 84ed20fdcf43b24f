"""Experts that stay in the model's file: the same bits as with all of them in memory, however little it is.

Covers model/expert_memory.py, engine/weight_bytes.py, cli/loading_options.py, csrc/exec/expert_*.c.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from benchmark_scripts import needs_scripts, small
from click.testing import CliRunner
from llama4_models import converted, llama4, opened
from test_batch_invariance import assert_same_bits, logits, prompt
from test_engine_adapters import write_adapter
from tiny_model import write_model

from pyllamacpu import Llama
from pyllamacpu.cli.main import cli
from pyllamacpu.engine import memory as engine_memory
from pyllamacpu.engine import weight_bytes
from pyllamacpu.engine.engine import Engine, Entry
from pyllamacpu.errors import ContextError, GGUFError, ModelError, OptionError
from pyllamacpu.gguf import GGUFFile, TensorType
from pyllamacpu.graph.passes import InputSquares
from pyllamacpu.graph.recorder import Recorder
from pyllamacpu.model.expert_memory import ExpertMemory
from pyllamacpu.quantize.driver import run
from pyllamacpu.quantize.file_types import parse_file_type
from pyllamacpu.quantize.plan import Settings, make_plan
from pyllamacpu.units import parse_bytes

__all__ = ["llama4"]

LENGTH = 80


def least(path: Path) -> int:
    """Bytes with which a model's experts can just be run: a slot for one matrix of each size."""
    with pytest.raises(OptionError, match="expert_memory is 1 B") as caught:
        opened(path, expert_memory=1)
    found = re.search(r"\((\d+) bytes\)", str(caught.value))
    assert found is not None
    return int(found[1])


@pytest.fixture(params=["F32", "F16", "Q8_0", "Q4_K_M"])
def model(request: pytest.FixtureRequest, llama4: dict[str, Path], tmp_path: Path, script: Any) -> Path:
    """A Llama 4 of 4 or 8 experts in each layer."""
    path = tmp_path / "model.gguf"
    if request.param == "F32":
        return llama4["scout"]
    if request.param == "F16":
        return converted("scout", tmp_path, "f16")
    if request.param == "Q4_K_M":  # with experts of two types and sizes
        synthetic = script("synthetic")
        synthetic.write(path, small(synthetic, n_layers=4, n_experts=8, dim=256, ffn_dim=256), "Q4_K_M")
        return path
    with GGUFFile.open(llama4["scout"]) as file:
        list(run(make_plan(file, Settings(parse_file_type(request.param))), path))
    return path


@needs_scripts
def test_bits_are_those_of_experts_in_memory(model: Path) -> None:
    """With a single slot for each size, a few, and one for every expert; by steps of any length."""
    whole_engine = opened(model)
    tokens = prompt(whole_engine, LENGTH)
    wanted = logits(whole_engine, tokens)
    all_bytes = whole_engine.weight_bytes
    whole_engine.close()
    smallest = least(model)
    for more, n_threads in ((0.0, 3), (0.25, 1), (2.0, 2)):
        limit = smallest + int(more * all_bytes)
        engine = opened(model, expert_memory=limit, n_threads=n_threads)
        for cut in (LENGTH, 7, 1):
            assert_same_bits(logits(engine, tokens, cut), wanted)
        memory = engine.expert_memory
        assert memory is not None and memory.n_bytes <= limit
        counts = memory.counts()
        assert 0 <= counts.found < counts.needed and counts.bytes_read > 0
        if more > 1:  # each was read once at most, but for guesses that were dropped half read
            experts = sum(info.n_bytes for info in engine.file.tensors.values() if "_exps" in info.name)
            assert counts.bytes_read < 2 * experts
        engine.close()


def counted_step(engine: Engine, tokens: list[int]) -> tuple[int, int]:
    """Matrices that a new sequence needed; and those of them that earlier ones had left in memory."""
    memory = engine.expert_memory
    assert memory is not None
    before = memory.counts()
    sequence = engine.sequence()
    engine.eval(sequence, tokens)
    sequence.close()
    now = memory.counts()
    return now.needed - before.needed, now.found - before.found


def test_what_was_used_last_is_found_again(llama4: dict[str, Path]) -> None:
    """A token that is computed twice needs nothing from the file the second time."""
    path = llama4["scout"]
    engine = opened(path, expert_memory=least(path) + 30 * 8192)
    counted_step(engine, [5])
    needed, found = counted_step(engine, [5])
    assert needed == found == 4 * 3
    for token in range(40):  # guesses at the next layer's experts come true for some of these tokens
        counted_step(engine, [token])
    assert engine.expert_memory is not None and 0.01 < engine.expert_memory.counts().right < 1
    counted_step(engine, [5])
    assert counted_step(engine, [5]) == (4 * 3, 4 * 3)  # also now that others had to go for it
    engine.close()


def test_a_scan_keeps_what_there_is_room_for(
    llama4: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all experts of all layers, though a last use was always before all the others. Nothing is read
    ahead here: how much of that comes in time, and what goes for it, is up to the readers.
    """
    path = llama4["scout"]
    monkeypatch.setattr(Recorder, "expect_experts", lambda *_, **__: None)
    engine = opened(path, expert_memory=least(path) + 30 * 8192)
    scan = prompt(engine, 200)
    counted_step(engine, scan)
    for _ in range(3):
        needed, found = counted_step(engine, scan)
        assert 36 < needed <= 4 * 4 * 3 and 20 < found < needed  # by the longest ago it is 12
    engine.close()


def test_adapters_on_experts(llama4: dict[str, Path], tmp_path: Path) -> None:
    path = llama4["scout"]
    whole, engine = opened(path), opened(path, expert_memory=least(path) + 3 * 8192)
    adapter = write_adapter(tmp_path / "adapter.gguf", whole, 5, 7)
    tokens = prompt(whole, 40)
    base = logits(engine, tokens)
    assert_same_bits(base, logits(whole, tokens))
    for each in (whole, engine):
        each.load_adapters([(adapter, 0.75)])
    changed = logits(engine, tokens)
    assert_same_bits(changed, logits(whole, tokens))
    assert not np.array_equal(changed, base)
    plain = engine.sequence()
    plain.adapters = ()
    mixed = engine.step([Entry(plain, tokens[:9], "all"), Entry(engine.sequence(), tokens[:20], "all")])
    assert_same_bits(mixed[:9], base[:9])
    assert_same_bits(mixed[9:], changed[:20])
    whole.close()
    engine.close()


def test_experts_that_were_replaced_lie_in_memory(llama4: dict[str, Path]) -> None:
    """Those of one product, while the others of the layer still come from the file."""
    path = llama4["scout"]
    name = "blk.3.ffn_up_exps.weight"
    engine = opened(path, expert_memory=least(path))
    tokens = prompt(engine, 20)
    before, data = logits(engine, tokens), engine.file.data(name)
    with engine.replaced({name: (TensorType.F32, data.copy())}):
        assert_same_bits(logits(engine, tokens), before)
    with engine.replaced({name: (TensorType.F32, (2 * data.view(np.float32)).view(np.uint8))}):
        assert not np.array_equal(logits(engine, tokens), before)
    engine.close()


def run_apart(code: str, path: Path, limit: int) -> None:
    command = [sys.executable, "-c", textwrap.dedent(code), str(path), str(limit)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr


_OPEN = """
        import os, signal, sys, threading
        from pyllamacpu.engine.engine import Engine
        from pyllamacpu.errors import GGUFError
        path, limit = sys.argv[1], int(sys.argv[2])
        def opened():
            return Engine.open(path, n_ctx=512, n_threads=2, expert_memory=limit)
        def evaluate(engine, tokens):
            sequence = engine.sequence()
            try:
                return engine.eval(sequence, tokens).copy()
            finally:
                sequence.close()
        tokens = [int(i) for i in range(3, 60)]
"""


@pytest.mark.skipif(sys.platform == "win32", reason="open files cannot be cut short there")
def test_a_file_that_is_cut_short_is_an_error_and_the_model_stays_usable(
    llama4: dict[str, Path], tmp_path: Path
) -> None:
    """A typed error in every step; and with the whole file the right numbers again."""
    code = (
        _OPEN
        + """
        content = open(path, "rb").read()
        engine = opened()
        wanted = evaluate(engine, tokens)
        for size in (len(content) - 1, len(content) // 2, len(content) // 2):
            os.truncate(path, size)
            try:
                evaluate(engine, tokens)
            except GGUFError as error:
                assert "cut short" in str(error) and path in str(error)
            else:
                sys.exit("no error")
        engine.close()
        with open(path, "r+b") as file:
            file.write(content)
        engine = opened()
        assert (evaluate(engine, tokens) == wanted).all()
        print("done")
    """
    )
    copy = tmp_path / "model.gguf"
    copy.write_bytes(llama4["scout"].read_bytes())
    run_apart(code, copy, least(copy))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_children_and_interrupted_steps(llama4: dict[str, Path]) -> None:
    """A child has none of the readers; a step that Ctrl-C ends leaves requests behind that nobody takes."""
    code = (
        _OPEN
        + """
        engine = opened()
        wanted = evaluate(engine, tokens)
        child = os.fork()
        if child == 0:
            os._exit(0 if (evaluate(engine, tokens) == wanted).all() else 1)
        assert os.waitpid(child, 0)[1] == 0
        interrupted = 0
        for i in range(5):
            timer = threading.Timer(0.06, os.kill, (os.getpid(), signal.SIGINT))
            try:
                timer.start()
                while True:
                    evaluate(engine, tokens * 5)
            except KeyboardInterrupt:
                interrupted += 1
            assert (evaluate(engine, tokens) == wanted).all()
        assert interrupted == 5
        engine.close()
        print("done")
    """
    )
    path = llama4["scout"]
    run_apart(code, path, least(path))


def test_reads_that_fail_are_errors(llama4: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptors that cannot be read from: what the system says about it, and no numbers."""
    real = os.open
    monkeypatch.setattr(
        "pyllamacpu.model.expert_memory.os.open",
        lambda path, flags: real(path, os.O_WRONLY),
    )
    monkeypatch.setattr("pyllamacpu.model.expert_memory._direct", lambda plain: -1)
    engine = opened(llama4["scout"], expert_memory=least(llama4["scout"]))
    for _ in range(2):
        with pytest.raises(
            GGUFError, match=r"scout-f32\.gguf: an expert cannot be read: Bad file descriptor"
        ):
            logits(engine, [1, 2, 3])
    engine.close()
    with pytest.raises(GGUFError, match=r"scout-f32.*an expert cannot be read: Bad file descriptor"):
        opened(llama4["scout"], expert_memory=least(llama4["scout"]), type_k="q4_0")  # reads a few tokens


def test_another_file_in_the_models_place(llama4: dict[str, Path], tmp_path: Path) -> None:
    path, other = tmp_path / "model.gguf", tmp_path / "other.gguf"
    for each in (path, other):
        each.write_bytes(llama4["scout"].read_bytes())
    with GGUFFile.open(path) as file:
        other.replace(path)
        with pytest.raises(GGUFError, match="another file has taken its place"):
            ExpertMemory(file, 1 << 20)


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setattr(engine_memory, "memory_usable", lambda: 60 << 20)
    yield monkeypatch


@needs_scripts
def test_a_model_larger_than_memory_runs_with_what_the_refusal_proposes(
    small_machine: pytest.MonkeyPatch, tmp_path: Path, script: Any
) -> None:
    synthetic = script("synthetic")
    path = tmp_path / "model.gguf"
    shape = small(synthetic, n_layers=3, n_experts=16, dim=512, ffn_dim=1024)
    synthetic.write(path, shape, "Q8_0")
    with pytest.raises(ModelError, match=r"--expert-memory \d+MB \(expert_memory=…") as caught:
        Engine.open(path, n_ctx=256)
    proposed = re.search(r"--expert-memory (\w+)", str(caught.value))
    assert proposed is not None
    engine = Engine.open(path, n_ctx=256, expert_memory=parse_bytes(proposed[1]))
    assert engine.weight_bytes < 60 << 20 < sum(info.n_bytes for info in engine.file.tensors.values())
    assert np.isfinite(logits(engine, [1, 2, 3])).all()
    engine.close()
    with pytest.raises(ModelError, match="its weights take"):
        Engine.open(path, n_ctx=256, expert_memory=70 << 20)
    small_machine.setattr(engine_memory, "memory_usable", lambda: 6 << 20)
    with pytest.raises(ModelError, match="its weights take") as caught:
        Engine.open(path, n_ctx=256)
    assert "--expert-memory" not in str(caught.value)
    with pytest.raises((ModelError, ContextError)):
        Engine.open(path, n_ctx=256, expert_memory=1 << 20)


def test_models_without_experts(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny.gguf")
    with pytest.raises(OptionError, match="has no experts that could stay in the file"):
        Engine.open(path, n_ctx=64, expert_memory=1 << 30)
    with pytest.raises(OptionError, match="expert_memory is 0"):
        Engine.open(path, n_ctx=64, expert_memory=0)


def test_the_command_line_takes_sizes(llama4: dict[str, Path]) -> None:
    runner = CliRunner()
    base = ["bench", "-m", str(llama4["scout"]), "-p", "8", "-n", "2", "-r", "1", "--no-limits", "-o", "json"]
    results = [runner.invoke(cli, [*base, *more]) for more in ((), ("--expert-memory", "0.4MB"))]
    assert [result.exit_code for result in results] == [0, 0], results[1].output
    whole, some = (json.loads(result.stdout)[0]["weight_bytes"] for result in results)
    assert some <= whole - 4 * 4 * 3 * 64 * 32 * 4 + 400_000
    wrong = runner.invoke(cli, [*base, "--expert-memory", "much"])
    assert wrong.exit_code == 2 and "'much' is not a size" in wrong.output
    assert isinstance(runner.invoke(cli, [*base, "--expert-memory", "1K"]).exception, OptionError)


def test_shown_memory_counts_the_experts_that_stay_there(llama4: dict[str, Path]) -> None:
    weights = []
    for more in ((), ("--expert-memory", "100K"), ("--expert-memory", "1GB")):
        shown = CliRunner().invoke(cli, ["show", str(llama4["scout"]), "--json", *more])
        weights.append(json.loads(shown.stdout)["memory"][0]["weights"])
    experts = 4 * 4 * 3 * 64 * 32 * 4
    assert weights == [weights[0], weights[0] - experts + 100_000, weights[0]]


def test_llama_takes_a_size_and_a_server_models_without_experts(
    llama4: dict[str, Path], tmp_path: Path
) -> None:
    with Llama(str(llama4["scout"]), n_ctx=64, expert_memory="2MB") as llm:
        memory = llm.engine.expert_memory
        assert memory is not None and memory.n_bytes <= 2_000_000
        assert llm.engine.weight_bytes > memory.n_bytes
    with pytest.raises(OptionError, match=r"expert_memory=1\.5: give a number of bytes"):
        Llama(str(llama4["scout"]), expert_memory=1.5)
    dense = write_model(tmp_path / "tiny.gguf")
    assert weight_bytes.has_experts(llama4["scout"]) and not weight_bytes.has_experts(dense)
    whole = weight_bytes.weight_bytes(llama4["scout"], None)
    assert weight_bytes.weight_bytes(llama4["scout"], 1000) < whole


def test_importance_is_measured_alike(llama4: dict[str, Path]) -> None:
    """A router's own inputs count, not those by which the layer before guessed what it will choose."""
    path, found = llama4["scout"], []
    for limit in (None, least(path)):
        sums: InputSquares = {}
        engine = opened(path, input_squares=sums, expert_memory=limit)
        engine.eval(engine.sequence(), prompt(engine, 50), logits="all")
        engine.close()
        found.append(sums)
    assert found[0].keys() == found[1].keys() and "blk.1.ffn_gate_inp.weight" in found[0]
    for name, squares in found[0].items():
        np.testing.assert_array_equal(squares.sums, found[1][name].sums, err_msg=name)
        if squares.counts is not None:
            np.testing.assert_array_equal(squares.counts, found[1][name].counts, err_msg=name)


# Commands


COMMANDS = (
    "batch", "bench", "chat", "complete", "guard", "imatrix", "perplexity", "quantize", "serve", "show",
)  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_runs_a_model_has_the_option(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None and any("--expert-memory" in option.opts for option in command.params)


def test_types_for_a_size_are_the_same_with_experts_in_the_file(
    llama4: dict[str, Path], tmp_path: Path
) -> None:
    """Measured with a slot for an expert of each size: the file is the same, byte by byte."""
    path, outs = llama4["scout"], [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    common = ["--target-bpw", "6", "--calibration-tokens", "256", "--probe-tokens", "256"]
    for out, more in zip(outs, ([], ["--expert-memory", str(least(path))]), strict=True):
        found = CliRunner().invoke(cli, ["quantize", str(path), str(out), *common, *more])
        assert found.exit_code == 0, found.output
    assert outs[0].read_bytes() == outs[1].read_bytes()
    wrong = CliRunner().invoke(cli, ["quantize", str(path), str(outs[0]), "Q8_0", "--expert-memory", "1GB"])
    assert wrong.exit_code == 2 and "--target-size" in wrong.output
