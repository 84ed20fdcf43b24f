"""The scripts of benchmarks/: synthetic models, comparisons with fake peers, reading kernel timings."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_model
from quantize_model import arrays, write_model

from pyllamacpu.bench.cases import Setup
from pyllamacpu.bench.runner import open_engine
from pyllamacpu.errors import OptionError
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.model.codebooks import ensure_codebook
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.text import load_tokenizer
from pyllamacpu.weights.blocks import quantize

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks"
T = TensorType

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs a source tree")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a script of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def synthetic(script: Any) -> ModuleType:
    return script("synthetic")  # type: ignore[no-any-return]


@pytest.fixture
def compare(script: Any) -> ModuleType:
    return script("compare")  # type: ignore[no-any-return]


def small(synthetic: ModuleType, **changes: Any) -> Any:
    usual = {
        "n_layers": 8,
        "dim": 256,
        "n_heads": 8,
        "kv_heads": 2,
        "ffn_dim": 512,
        "vocab": 1000,
        "n_ctx": 512,
    }
    usual |= {"label": "1M", "rope_theta": 1e4, "tied": True, "pre": "llama-bpe", "rope_factor": 8.0}
    return synthetic.Shape(**(usual | changes))


# synthetic.py


@pytest.mark.parametrize(
    "mix", ["F32", "F16", "BF16", "Q4_0", "Q5_1", "Q8_0", "Q4_K_M", "Q6_K", "IQ2_XS", "IQ1_M"]
)
def test_a_synthetic_model_runs_with_sane_logits(synthetic: ModuleType, mix: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    synthetic.write(path, small(synthetic, n_experts=4 if mix in ("F16", "Q4_K_M") else 0), mix)
    engine = open_engine(Setup(path, 1, "f16", "f16", 64, 64), 64)
    sequence = engine.sequence()
    try:
        logits = engine.eval(sequence, list(range(20)), logits="all")
        assert np.isfinite(logits).all()
        assert 0.05 < float(logits.std()) < 50
    finally:
        sequence.close()
        engine.close()


@pytest.mark.parametrize("kind", [k for k in TensorType if k.runnable and k not in (T.F32, T.F16, T.BF16)])
def test_random_blocks_have_the_wanted_spread(synthetic: ModuleType, kind: TensorType) -> None:
    ensure_codebook(kind)
    blocks = synthetic.random_blocks(np.random.default_rng(1), kind, 2000, 0.05)
    values = dequantize(blocks.reshape(-1), kind, (2000, kind.block_size))
    assert np.isfinite(values).all()
    assert 0.03 < float(values.std()) < 0.08
    assert abs(float(values.mean())) < 0.03


@pytest.mark.parametrize("kind", [T.F32, T.F16, T.BF16])
def test_random_floats_have_about_the_wanted_spread(synthetic: ModuleType, kind: TensorType) -> None:
    values = dequantize(synthetic.random_floats(np.random.default_rng(1), kind, 4096, 0.02), kind, (4096,))
    assert 0.01 < float(values.std()) < 0.06 and abs(float(values.mean())) < 0.01


def test_the_file_is_read_by_the_gguf_package(synthetic: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    synthetic.write(path, small(synthetic, tied=False), "Q4_K_M")
    reader = gguf.GGUFReader(path)
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["output.weight"] == "Q6_K" and types["token_embd.weight"] == "Q4_K"
    assert types["output_norm.weight"] == types["rope_freqs.weight"] == "F32"
    assert reader.get_field("general.file_type").contents() == 15
    del reader


def test_its_tokenizer_loads_and_round_trips(synthetic: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    synthetic.write(path, small(synthetic), "Q8_0")
    with GGUFFile.open(path) as file:
        tokenizer = load_tokenizer(file.metadata, path)
        assert tokenizer is not None
        ids = tokenizer.encode("Hello, wörld!", add_special=False)
        assert all(0 <= i < 1000 for i in ids)
        assert tokenizer.decode(ids) == "Hello, wörld!"


@pytest.mark.parametrize("n", [700, 49152, 128256])
def test_vocabularies_have_the_size_and_no_token_twice(synthetic: ModuleType, n: int) -> None:
    tokens, merges, types = synthetic.vocabulary(n)
    assert len(tokens) == len(set(tokens)) == len(types) == n
    known = set(tokens)
    assert len(merges) == n - 512 and all("".join(m.split(" ")) in known for m in merges)


def test_mixes_follow_llama_quantize(synthetic: ModuleType) -> None:
    shape = synthetic.SHAPES["1B"]

    def layers(mix: str, kind: str) -> list[TensorType]:
        return [synthetic.tensor_type(mix, f"blk.{i}.{kind}.weight", shape) for i in range(shape.n_layers)]

    more = [i for i, kind in enumerate(layers("Q4_K_M", "ffn_down")) if kind == T.Q6_K]
    assert more == [0, 1, 4, 7, 10, 13, 14, 15]  # of Llama-3.2-1B-Instruct-Q4_K_M.gguf
    assert layers("Q4_K_M", "attn_v") == layers("Q4_K_M", "ffn_down")
    assert set(layers("Q4_K_M", "attn_q")) == {T.Q4_K}
    assert layers("Q4_K_S", "attn_v")[:5] == [T.Q5_K] * 4 + [T.Q4_K]
    assert synthetic.tensor_type("Q4_K_M", "token_embd.weight", shape) == T.Q6_K  # tied: the output too
    assert synthetic.tensor_type("Q8_0", "token_embd.weight", shape) == T.Q8_0
    assert synthetic.tensor_type("Q4_K_M", "token_embd.weight", synthetic.SHAPES["8B"]) == T.Q4_K
    small_rows = synthetic.SHAPES["135M"]  # rows of 576 are no multiple of 256
    assert synthetic.tensor_type("Q4_K_M", "blk.5.attn_q.weight", small_rows) == T.Q5_0
    assert synthetic.tensor_type("Q4_K_M", "blk.5.ffn_up.weight", small_rows) == T.Q5_0
    assert synthetic.tensor_type("Q4_K_M", "blk.2.ffn_down.weight", small_rows) == T.Q6_K


def test_sizes_are_those_of_the_real_models(synthetic: ModuleType) -> None:
    for label, n in (
        ("135M", 134_515_008),
        ("1B", 1_235_814_400),
        ("3B", 3_212_749_824),
        ("8B", 8_030_261_248),
    ):
        shape = synthetic.SHAPES[label]
        count = sum(rows * cols for rows, cols in synthetic.matrices(shape).values())
        count += sum(v.size for name, v in synthetic.vectors(shape).items() if name != "rope_freqs.weight")
        assert count == n, label


def test_rope_divisors_are_llama3s(synthetic: ModuleType) -> None:
    found = synthetic.llama3_divisors(synthetic.SHAPES["1B"])
    assert found.shape == (32,) and found[0] == 1.0 and found[-1] == pytest.approx(32.0)
    assert np.all(np.diff(found) >= 0)


def test_cached_models_are_made_once_and_bad_names_are_refused(
    synthetic: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(synthetic.SHAPES, "1B", small(synthetic))
    first = synthetic.cached("1b:q4_k_m", tmp_path)
    stamp = first.stat().st_mtime_ns
    assert first.name == "synthetic-1B-Q4_K_M.gguf"
    assert synthetic.cached("1B:Q4_K", tmp_path) == first and first.stat().st_mtime_ns == stamp
    assert synthetic.cached("1B:Q4_0:pure", tmp_path).name == "synthetic-1B-Q4_0-pure.gguf"
    for bad in ("2B:Q4_0", "1B", "1B:Q9", "1B:Q4_0:impure"):
        with pytest.raises(OptionError):
            synthetic.cached(bad, tmp_path)


def test_pure_is_one_type_and_refuses_rows_that_do_not_fit(synthetic: ModuleType, tmp_path: Path) -> None:
    synthetic.write(tmp_path / "a.gguf", small(synthetic), "Q4_K_M", pure=True)
    with GGUFFile.open(tmp_path / "a.gguf") as file:
        assert {info.type for info in file.tensors.values() if len(info.shape) == 2} == {T.Q4_K}
    with pytest.raises(OptionError, match="multiple of 256"):
        synthetic.write(tmp_path / "b.gguf", small(synthetic, dim=320), "Q4_K_M", pure=True)
    assert os.listdir(tmp_path) == ["a.gguf"]


# compare.py

FAKE = """
import json, sys
args = dict(zip(sys.argv[1::2], sys.argv[2::2]))
pp, tg = map(int, args["-pg"].split(",")) if "-pg" in args else (int(args["-p"]), int(args["-n"]))
speed = {speed}
row = {{"n_prompt": pp, "n_gen": tg, "n_depth": int(args.get("-d", 0))}}
row["samples_ts"] = [speed] * int(args["-r"])
print("some chatter [here]")
print(json.dumps([row], indent=2))
"""


@pytest.fixture
def fake(tmp_path: Path) -> Any:
    """Makes a program with llama-bench's options that always has the same speed."""

    def make(name: str, speed: float, code: str = FAKE) -> str:
        path = tmp_path / f"{name}.py"
        path.write_text(code.format(speed=speed))
        return f"{sys.executable} {path}"

    return make


def job(compare: ModuleType, tests: list[Any], rounds: int = 2) -> Any:
    return compare.Job((Path("model.gguf"),), tuple(tests), (), 2, rounds, 60.0)


def test_programs_run_in_turn_and_ratios_are_ours_over_theirs(compare: ModuleType, fake: Any) -> None:
    ours = compare.Program("pyllamacpu", tuple(fake("ours", 30.0).split()))
    peer = compare.parse_program("peer=" + fake("peer", 20.0))
    said: list[str] = []
    work = job(compare, [compare.Test(8, 0, 0), compare.Test(4, 2, 16)])
    cells = compare.compare([ours, peer], work, said.append)
    assert [line.rpartition(" ")[2] for line in said[:4]] == ["pyllamacpu", "peer", "peer", "pyllamacpu"]
    text = compare.table(cells, [ours, peer], work)
    assert "ratio to peer" in text and text.count(" 1.50 ") == 2
    assert "pp4+tg2 @ d16" in text
    results = compare.as_json(cells, [ours, peer], work)["results"]
    assert [r["samples_ts"] for r in results] == [[30.0] * 4, [20.0] * 4] * 2


def test_a_failing_peer_is_shown_and_does_not_end_the_comparison(compare: ModuleType, fake: Any) -> None:
    ours = compare.Program("pyllamacpu", tuple(fake("ours", 30.0).split()))
    bad = compare.parse_program("bad=" + fake("bad", 0, "import sys; sys.exit('no such model')"))
    mute = compare.parse_program("mute=" + fake("mute", 0, "print('hello')"))
    gone = compare.parse_program("gone=/no/such/program")
    work = job(compare, [compare.Test(8, 0, 0)])
    programs = [ours, bad, mute, gone]
    cells = compare.compare(programs, work)
    failures = {name: cell.failure for (_, _, name), cell in cells.items()}
    assert "no such model" in failures["bad"] and "no JSON" in failures["mute"] and failures["gone"]
    assert failures["pyllamacpu"] == ""
    assert compare.table(cells, programs, work).count("failed") == 3


def test_spread_is_the_quartiles(compare: ModuleType) -> None:
    assert compare.Cell([10.0, 20.0, 30.0, 40.0, 50.0], []).spread == pytest.approx(10 / 30)
    assert compare.Cell([10.0, 20.0], []).spread == 0.0


def test_a_share_is_of_the_limit_in_the_same_run(compare: ModuleType) -> None:
    work = job(compare, [compare.Test(8, 0, 0)])
    limits = {
        "limit_int8_ops_per_second": 2e12,
        "limit_fp32_ops_per_second": 5e11,
        "int8_ops_per_second": 0.0,
    }
    rows = [
        {"limited_by": "read", "read_bytes_per_second": rate, "limit_read_bytes_per_second": limit, **limits}
        for rate, limit in ((40e9, 50e9), (80e9, 100e9), (45e9, 50e9))
    ]
    cells = {(work.models[0], work.tests[0], "pyllamacpu"): compare.Cell([1.0], rows)}
    ours = compare.Program("pyllamacpu", ("true",))
    assert "| 45.0 GB/s |   80.0 % |" in compare.table(cells, [ours], work)
    assert "reading 50.00 to 100.00 GB/s, int8 2.00 to 2.00 Top/s" in compare.limits_line(cells)


@pytest.mark.parametrize("text", ["peer", "=x", "peer=", "pyllamacpu=x"])
def test_bad_peers_are_refused(compare: ModuleType, text: str) -> None:
    with pytest.raises(OptionError, match="--peer"):
        compare.parse_program(text)


def test_our_own_bench_runs_from_compare(
    compare: ModuleType, synthetic: ModuleType, fake: Any, tmp_path: Path
) -> None:
    model = tmp_path / "model.gguf"
    synthetic.write(model, small(synthetic), "Q8_0")
    command = [sys.executable, str(FOLDER / "compare.py"), "-m", str(model), "-p", "8", "-n", "2", "-r", "1"]
    command += [
        "--peer",
        "peer=" + fake("peer", 20.0),
        "--rounds",
        "1",
        "-t",
        "1",
        "--json",
        str(tmp_path / "out"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "pp8" in done.stdout and "tg2" in done.stdout and "Limits of this machine" in done.stdout
    results = json.loads((tmp_path / "out").read_text())["results"]
    assert [r["program"] for r in results] == ["pyllamacpu", "peer"] * 2
    assert results[0]["row"]["limit_int8_ops_per_second"] > 0


# kernels.py

PRINTED = """elementwise  10 cases x 2 tiers: ok
tiers: scalar avx2; seed 1; 0 failures
scalar
  q4_0        1.50 GB/s      5.0 Gop/s one token        7.0 Gop/s 128 tokens
avx2
  q4_0       20.00 GB/s     71.0 Gop/s one token      150.0 Gop/s 128 tokens
  f16        10.00 GB/s     10.0 Gop/s one token       90.0 Gop/s 128 tokens
  q8_0       12.00 GB/s     40.0 Gop/s attention, 8 rows
  ns per 4096 floats: quantize 900  rms_norm 300
"""


def test_kernel_timings_are_read(script: Any) -> None:
    kernels = script("kernels")
    found = list(kernels.parse(PRINTED, ["scalar", "avx2"]))
    assert [(t.tier, t.kernel, t.unit) for t in found] == [
        ("scalar", "Q4_0, 1 token", "int8"),
        ("scalar", "Q4_0, 128 tokens", "int8"),
        ("avx2", "Q4_0, 1 token", "int8"),
        ("avx2", "Q4_0, 128 tokens", "int8"),
        ("avx2", "F16, 1 token", "fp32"),
        ("avx2", "F16, 128 tokens", "fp32"),
        ("avx2", "attention q8_0, 8 rows", "fp32"),
        ("avx2", "quantize", ""),
        ("avx2", "rms_norm", ""),
    ]
    limits = {name: kernels.TierLimits(40e9, 300e9, 100e9) for name in ("scalar", "avx2")}
    text = kernels.table(found, limits)
    line = next(line for line in text.splitlines() if "| avx2" in line and "Q4_0, 1 token" in line)
    assert "50 %" in line and "24 %" in line
    assert "50 %" not in kernels.table(found[2:3], limits, from_memory=False)


def test_the_check_program_prints_what_is_read(script: Any) -> None:
    """The format is that of tests/csrc/bench.c."""
    source = (ROOT / "tests" / "csrc" / "bench.c").read_text()
    for part in (
        "GB/s %8.1f Gop/s one token",
        "Gop/s %d tokens",
        "Gop/s attention, %d rows",
        "ns per 4096 floats:",
    ):
        assert part in source


def test_a_tiers_limits_are_measured_in_a_process_of_its_own(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    kernels = script("kernels")
    found = kernels.measure_limits("scalar", 0.05)
    assert found.read_bytes > 0 and found.int8_ops > 0 and found.fp32_ops > 0
    with pytest.raises(kernels.BuildError, match="avx1024"):
        kernels.measure_limits("avx1024", 0.05)


def test_noise_takes_weights_off_their_grid(script: Any, tmp_path: Path) -> None:
    name, kind = "blk.1.ffn_up.weight", TensorType.Q4_1
    blocks = {**arrays(), name: quantize(arrays()[name], kind)}
    source = write_model(tmp_path / "grid.gguf", blocks, kinds={name: kind})
    script("quantize_target").without_grid(source, tmp_path / "noisy.gguf")
    with GGUFFile.open(source) as file, GGUFFile.open(tmp_path / "noisy.gguf") as noisy:
        shape = file.tensors[name].shape
        steps = file.data(name).reshape(-1, 20)[:, :2].copy().view("<f2").astype(np.float32)
        moved = noisy.data(name).view("<f2").reshape(shape) - dequantize(file.data(name), kind, shape)
        assert (np.abs(moved.reshape(-1, 32)) <= 0.51 * steps).all()
        assert np.abs(moved).mean() > 0.2 * steps.mean()
        np.testing.assert_array_equal(noisy.data("output_norm.weight"), file.data("output_norm.weight"))


def test_the_scheduler_is_measured_beside_bare_steps(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny_model import write_model as write_tiny

    model = write_tiny(tmp_path / "tiny.gguf")
    sizes = ["--sequences", "1,3", "--prompt", "4", "--tokens", "3", "--rounds", "1"]
    script("scheduler").main(["--model", str(model), *sizes])
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "3"]
    assert all(float(number) > 0 for line in lines for number in line.split())


def test_drafts_are_measured_and_their_answers_compared(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny_model import write_model as write_tiny

    model = write_tiny(tmp_path / "tiny.gguf")
    common = ["--model", str(model), "--tokens", "6", "--context", "2400"]
    script("drafts").main([*common, "--only", "numbers", "--rounds", "1", "--batch", "2"])
    _, greedy, sampled = capsys.readouterr().out.splitlines()
    assert greedy.split()[-1] == sampled.split()[-1] == "yes"
    script("drafts").main([*common, "--check", "10", "--batch", "5", "--draft", str(model)])
    assert capsys.readouterr().out.startswith("10 prompts, batches of 5: 0 differ; ")


# serve.py


def test_a_server_is_measured_beside_the_bench(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny_model import write_model as write_tiny

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    model = write_tiny(tmp_path / "tiny.gguf", n_ctx=1024)
    sizes = ["--clients", "1,2", "--prompt", "8", "--tokens", "64", "--long", "256", "--streams", "2"]
    more = ["--requests", "4", "-t", "1", "--rounds", "1", "--json", str(tmp_path / "rows.json")]
    assert script("serve").main(["--model", str(model), *sizes, *more]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["clients"] for row in rows if row["program"] == "bench"] == [1, 2]
    found = {row["part"] for row in rows if row["program"] == "pyllamacpu"}
    assert found == set(script("serve_parts").PARTS)
    numbers = [value for row in rows for value in row.values() if isinstance(value, float)]
    assert numbers and min(numbers) >= 0
    shown = capsys.readouterr().out
    assert "| 1 " in shown and "cancelled while it streams" in shown and "memory: scratch" in shown


def test_ratios_of_servers_are_taken_within_rounds(script: Any) -> None:
    rows = [
        {"round": i, "program": name, "part": "throughput", "tokens_per_second": speed}
        for name, speeds in (("pyllamacpu", (10.0, 100.0, 30.0)), ("bench", (20.0, 100.0, 40.0)))
        for i, speed in enumerate(speeds)
    ]
    figures = script("serve").Figures(rows)
    name = "tokens_per_second"
    assert figures.median(name, program="pyllamacpu") == 30.0
    assert figures.ratio(name, {"program": "pyllamacpu"}, name, {"program": "bench"}) == 0.75
    assert figures.median(name, program="nobody") is None


def test_times_of_a_streamed_answer(script: Any) -> None:
    """An event that comes in two pieces came with the second."""
    client = script("streaming_client")
    one = b'data: {"choices":[{"text":"a"}]}\n\n'
    end = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
    pieces = [(1.5, b"HTTP/1.1 200 OK\r\n\r\n" + one[:9]), (2.0, one[9:] + one), (3.0, end)]
    answer = client.Answer(1.0, pieces)
    assert answer.text_times == [2.0, 2.0] and answer.first == 1.0 and answer.n_tokens == (3, 2)
    with pytest.raises(client.ServerFailure, match="503"):
        client.Answer(1.0, [(1.1, b"HTTP/1.1 503 no")]).events  # noqa: B018


def test_answers_are_the_same_after_a_kill(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Alone, at once, from the cache, and from the disk after kill -9."""
    model = tiny_model.write_model(tmp_path / "tiny.gguf", n_ctx=1024)
    options = ["--answers", "3", "--tokens", "10", "--long", "0", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["same_answers.py", "--model", str(model), *options])
    assert script("same_answers").main() == 0
    shown = capsys.readouterr().out
    assert shown.count("3 of 3 equal") == 3


# serve_weather.py


def test_bad_weather_harms_nobody_and_leaves_nothing(script: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Some seconds of it, with a kill in the middle."""
    from tiny_model import write_model as write_tiny

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    models = [write_tiny(tmp_path / f"{name}.gguf", n_ctx=1024) for name in ("a", "b")]
    named = [word for model in models for word in ("--model", str(model))]
    sizes = ["--minutes", "0.06", "--clients", "16", "-t", "1", "--json", str(tmp_path / "weather.json")]
    code = script("serve_weather").main([*named, *sizes])
    seen = json.loads((tmp_path / "weather.json").read_text())
    assert seen["faults"] == [] and code == 0
    assert seen["healthy answers"] > 0 and seen["nasty requests"] > 16 and seen["requests_running"] == 0


@pytest.mark.parametrize(
    ("status", "fault"), [(200, True), (500, True), (400, False), (503, False), (0, True)]
)
def test_what_is_a_fault_in_bad_weather(script: Any, status: int, fault: bool) -> None:
    clients = script("weather_clients")

    class Answering(clients.Server):  # type: ignore[misc]
        async def ask(self, data: bytes) -> tuple[int, bytes]:
            return status, b""

    server = Answering(1, "k", ("m",))
    if not fault:
        asyncio.run(server.refused(b""))
        return
    with pytest.raises(clients.Fault):
        asyncio.run(server.refused(b""))


def test_a_changed_bit_is_a_fault_in_bad_weather(script: Any) -> None:
    weather = script("serve_weather")
    answer = {"choices": [{"text": "a", "logprobs": {"token_logprobs": [-0.25]}}], "id": "1"}
    other = json.loads(json.dumps(answer))
    other["choices"][0]["logprobs"]["token_logprobs"] = [-0.2500001]
    found = [weather.essence(json.dumps(a).encode(), False) for a in (answer, {**answer, "id": "2"}, other)]
    assert found[0] == found[1] != found[2]
    event = {"choices": [{"delta": {"content": "a"}, "logprobs": {"content": [{"logprob": -1.0}]}}]}
    line = b"data: " + json.dumps(event).encode() + b"\n\n"
    chunks = b"".join(f"{len(line):x}\r\n".encode() + line + b"\r\n" for _ in range(2)) + b"0\r\n\r\n"
    assert weather.essence(weather.plain(chunks), True) == {"text": "aa", "logprobs": [{"logprob": -1.0}] * 2}
