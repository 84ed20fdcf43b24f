"""The smaller scripts of benchmarks/: kernel timings, noise on weights, scheduler, drafts, depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_scripts import ROOT, needs_scripts
from quantize_model import arrays, write_model
from tiny_model import write_model as write_tiny

from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.weights.blocks import quantize

pytestmark = needs_scripts


# kernels.py

PRINTED = """elementwise  10 cases x 2 tiers: ok
tiers: scalar avx2; seed 1; 0 failures
scalar
  q4_0        1.50 GB/s      5.0 Gop/s one token        7.0 Gop/s 128 tokens
avx2
  q4_0       20.00 GB/s     71.0 Gop/s one token      150.0 Gop/s 128 tokens
  q4_0     Gop/s of small batches:  2: 90.5  16: 140.0
  f16        10.00 GB/s     10.0 Gop/s one token       90.0 Gop/s 128 tokens
  f16        10.00 GB/s     30.0 Gop/s attention, 8 rows, fp32
  q8_0       12.00 GB/s     40.0 Gop/s attention, 8 rows, int16
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
        ("avx2", "Q4_0, 2 tokens", "int8"),
        ("avx2", "Q4_0, 16 tokens", "int8"),
        ("avx2", "F16, 1 token", "fp32"),
        ("avx2", "F16, 128 tokens", "fp32"),
        ("avx2", "attention f16, 8 rows", "fp32"),
        ("avx2", "attention q8_0, 8 rows", "int16"),
        ("avx2", "quantize", ""),
        ("avx2", "rms_norm", ""),
    ]
    assert [t.ops_per_second for t in found[4:6]] == [90.5e9, 140e9]
    limits = {name: kernels.TierLimits(40e9, 300e9, 100e9) for name in ("scalar", "avx2")}
    text = kernels.table(found, limits)
    line = next(line for line in text.splitlines() if "| avx2" in line and "Q4_0, 1 token" in line)
    assert "50 %" in line and "24 %" in line
    assert "50 %" not in kernels.table(found[2:3], limits, from_memory=False)
    limits["avx2"] = kernels.TierLimits(40e9, 300e9, 100e9, {"Q4_0": 600e9}, 160e9)  # of its width of codes
    assert "12 %" in next(line for line in kernels.table(found, limits).splitlines() if "| avx2" in line)
    lines = [line for line in kernels.table(found, limits).splitlines() if "attention" in line]
    assert "30 %" in lines[0] and "25 %" in lines[1]


def test_the_check_program_prints_what_is_read(script: Any) -> None:
    """The format is that of tests/csrc/bench.c."""
    source = (ROOT / "tests" / "csrc" / "bench.c").read_text()
    for part in (
        "GB/s %8.1f Gop/s one token",
        "Gop/s %d tokens",
        "Gop/s of small batches:",
        "  %d: %.1f",
        "Gop/s attention, %d rows, %s",
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
    assert found.ops_of_type["Q4_0"] > 0 and "F32" not in found.ops_of_type
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
    model = write_tiny(tmp_path / "tiny.gguf")
    sizes = ["--sequences", "1,3", "--prompt", "4", "--tokens", "3", "--rounds", "1"]
    script("scheduler").main(["--model", str(model), *sizes])
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "3"]
    assert all(float(number) > 0 for line in lines for number in line.split())


def test_drafts_are_measured_and_their_answers_compared(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_tiny(tmp_path / "tiny.gguf")
    common = ["--model", str(model), "--tokens", "6", "--context", "2400"]
    script("drafts").main([*common, "--only", "numbers", "--rounds", "1", "--batch", "2"])
    _, greedy, sampled = capsys.readouterr().out.splitlines()
    assert greedy.split()[-1] == sampled.split()[-1] == "yes"
    script("drafts").main([*common, "--check", "10", "--batch", "5", "--draft", str(model)])
    assert capsys.readouterr().out.startswith("10 prompts, batches of 5: 0 differ; ")


def test_tokens_behind_copied_pages_are_measured(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", n_ctx=1024)
    sizes = ["--depth", "20,700", "--prompt", "40", "-n", "3", "--rounds", "1", "-t", "1", "-ct", "f16,q8_0"]
    script("depth").main(["--model", str(model), *sizes])
    _, _, *rows = [
        [word.strip() for word in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()
    ]
    assert [row[:3] for row in rows] == [
        [kind, depth, test]
        for kind in ("f16", "q8_0")
        for depth in ("20", "700")
        for test in ("prompt of 40", "1 token")
    ]
    assert all(float(row[6]) > 0 for row in rows)
    with pytest.raises(SystemExit):
        script("depth").main(["--model", str(model), "--depth", "0"])
