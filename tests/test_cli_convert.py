"""`pyllamacpu convert` as it is typed. Covers cli/convert.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_build import bf16_bits, write_safetensors
from click.testing import CliRunner, Result
from convert_models import BY_NAME, weights, write_checkpoint

from pyllamacpu.cli.main import cli
from pyllamacpu.errors import PyllamacpuError
from pyllamacpu.gguf import GGUFFile


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "Tiny-1B-Chat", BY_NAME["gqa"])


def run(*args: object) -> Result:
    result = CliRunner().invoke(cli, ["convert", *map(str, args)])
    if isinstance(result.exception, PyllamacpuError):
        raise result.exception
    return result


def test_the_path_is_printed(source: Path, tmp_path: Path) -> None:
    result = run(source, "-o", tmp_path / "{name}-{FTYPE}.gguf", "--outtype", "q8_0")
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path}/Tiny-1B-Chat-Q8_0.gguf\n"
    assert "token ids only" in result.stderr
    assert re.search(r"Q8_0: 21 tensors, .* in .* s \(.*/s\)", result.stderr)


def test_dry_run(source: Path, tmp_path: Path) -> None:
    result = run(
        source, "-o", tmp_path / "x.gguf", "--outtype", "bf16", "--dry-run", "--split-max-tensors", 11
    )
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert any(line.split() == ["llama.block_count", "2"] for line in lines)
    assert any(
        line.split() == ["token_embd.weight", "256", "x", "64", "F32", "->", "BF16", "32.77", "KB"]
        for line in lines
    )
    assert any(line.startswith(f"{tmp_path}/x-00002-of-00002.gguf: 10 tensors") for line in lines)
    assert "bits per weight; nothing was written" in lines[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Tiny-1B-Chat"]


def test_options(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    edit = "general.author=str:me"
    result = run(
        source, "-o", out, "--metadata", edit, "--model-name", "Mine", "--remove-metadata", "general.type"
    )
    assert result.exit_code == 0
    with GGUFFile.open(out) as file:
        assert (file.metadata["general.author"], file.metadata["general.name"]) == ("me", "Mine")
        assert "general.type" not in file.metadata


def test_help_shows_examples() -> None:
    result = run("--help")
    assert "pyllamacpu convert Llama-3.2-1B-Instruct --outtype q4_k_m" in result.stdout


# VmHWM, because a child's ru_maxrss begins with what its parent had when it was forked.
MEASURE = """
import sys
from pathlib import Path
from pyllamacpu.convert.conversion import ConvertOptions
from pyllamacpu.convert.sources import plan_conversion
plan = plan_conversion(Path(sys.argv[1]), ConvertOptions(outfile=sys.argv[2], outtype=sys.argv[3]))
plan.run()
status = Path("/proc/self/status").read_text()
print(1024 * int(status.split("VmHWM:")[1].split()[0]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("outtype", ["bf16", "q4_0"])
def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path, outtype: str) -> None:
    """A checkpoint of 290 MB in a sparse file, largest tensor 8 MB: at most twice that and 200 MB."""
    layers, dim, ffn, vocab = 18, 1024, 1536, 4096
    source = sparse_checkpoint(tmp_path / "big", layers, dim, ffn, vocab)
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(source), str(tmp_path / "out.gguf"), outtype],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak = int(run.stdout.split()[-1])
    largest = 2 * vocab * dim
    size = (source / "model.safetensors").stat().st_size
    assert size > 280e6 > 2 * largest + 250e6
    assert peak <= 2 * largest + 200e6, f"{peak / 1e6:.0f} MB"


def sparse_checkpoint(folder: Path, layers: int, dim: int, ffn: int, vocab: int) -> Path:
    """BF16 zeros that take no room on the disk."""
    import json

    tiny = BY_NAME["gqa"]
    folder.mkdir()
    config = tiny.full_config() | {
        "hidden_size": dim,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "num_hidden_layers": layers,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {
        "model.embed_tokens.weight": [vocab, dim],
        "lm_head.weight": [vocab, dim],
        "model.norm.weight": [dim],
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name in ("q", "k", "v", "o"):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = [dim // 2 if name in "kv" else dim, dim]
        shapes |= {f"{prefix}mlp.{name}_proj.weight": [ffn, dim] for name in ("gate", "up")}
        shapes[f"{prefix}mlp.down_proj.weight"] = [dim, ffn]
        shapes |= {f"{prefix}{name}_layernorm.weight": [dim] for name in ("input", "post_attention")}
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return folder


def test_the_sparse_checkpoint_is_a_model(tmp_path: Path) -> None:
    """So that the test above measures what it means to."""
    source = sparse_checkpoint(tmp_path / "big", 1, 64, 96, 256)
    assert run(source, "-o", tmp_path / "x.gguf").exit_code == 0
    bits = {name: bf16_bits(array) for name, array in weights(BY_NAME["gqa"]).items() if ".1." not in name}
    filled = write_safetensors(tmp_path / "filled.safetensors", bits, dict.fromkeys(bits, "BF16"))
    assert filled.stat().st_size == pytest.approx((source / "model.safetensors").stat().st_size, rel=0.05)
