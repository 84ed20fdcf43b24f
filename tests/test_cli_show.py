import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from pyllamacpu.cli.show import show
from pyllamacpu.errors import GGUFError, ModelError
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.gguf.writer import GGUFWriter

TEMPLATE = "{% for m in messages %}\n{{ m.content }}{% endfor %}"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return written(tmp_path / "m.gguf", "llama")


def written(path: Path, arch: str, template: str | None = TEMPLATE, **more: Any) -> Path:
    with GGUFWriter(path, arch) as writer:
        for key, value in {
            "block_count": 2, "embedding_length": 64, "feed_forward_length": 128, "attention.head_count": 4,
            "attention.head_count_kv": 2, "context_length": 3000, "vocab_size": 32, **more,
        }.items():  # fmt: skip
            writer.add(f"{arch}.{key}", value)
        writer.add(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)
        writer.add("tokenizer.ggml.tokens", [f"token{i}" for i in range(32)])
        writer.add("general.name", "evil\x1b[31m\nname")
        writer.add("test.floats", np.float32([1, np.nan, np.inf]))
        if template is not None:
            writer.add("tokenizer.chat_template", template)
        writer.add_array("token_embd.weight", np.zeros((32, 64), np.float32))
        writer.add_array("blk.0.x", np.zeros((32, 68), np.uint8), TensorType.Q8_0)
    return path


def run(*arguments: Any) -> str:
    result = CliRunner().invoke(
        show, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False
    )
    assert result.exception is None, result.exception
    return result.output


def fails(kind: type[Exception], *arguments: Any) -> str:
    with pytest.raises(kind) as caught:
        CliRunner().invoke(show, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False)
    return str(caught.value)


def test_everything_on_plain_lines(model: Path) -> None:
    lines = run(model).splitlines()
    joined = "\n".join(" ".join(line.split()) for line in lines)
    assert "version 3" in joined and "byte order little" in joined and "parts 1" in joined
    assert "llama.context_length uint32 3000" in joined
    assert "tokenizer.ggml.tokens array of 32 string [token0," in joined and "… 32 in all]" in joined
    assert "token31" not in joined
    assert "token_embd.weight F32 32 × 64 8192" in joined and "blk.0.x Q8_0 32 × 64 2176" in joined
    assert "parameters 4096" in joined and "bits per weight 20.25" in joined
    assert "F32 1 2048 8 KiB" in joined and "Q8_0 1 2048 2.125 KiB" in joined
    assert "\x1b" not in joined and "evil\\x1b[31m\\nname" in joined
    assert all(line == line.rstrip() for line in lines)


def test_memory_per_context(model: Path) -> None:
    rows = json.loads(run(model, "--json", "-ctk", "f32", "--type-v", "f16"))["memory"]
    assert [row["context"] for row in rows] == [512, 1024, 2048, 3000]
    for row in rows:
        assert row["weights"] == 8192 + 2176
        assert row["kv"] == -(-row["context"] // 32) * 32 * 2 * 2 * 16 * (4 + 2)
        assert row["total"] == row["weights"] + row["kv"] + row["scratch"]
    assert "Metadata" not in (only := run(model, "--memory")) and "2048" in only


def test_json_and_full(model: Path) -> None:
    short, full = json.loads(run(model, "--json")), json.loads(run(model, "--json", "--full"))
    assert short["file"]["tensors"] == 2 and short["file"]["bytes"] == model.stat().st_size
    assert short["tensors"][0] == {
        "name": "token_embd.weight", "type": "F32", "shape": [32, 64], "bytes": 8192
    }  # fmt: skip
    assert short["metadata"]["tokenizer.ggml.tokens"]["length"] == 32
    assert full["metadata"]["tokenizer.ggml.tokens"] == [f"token{i}" for i in range(32)]
    assert short["metadata"]["test.floats"] == [1.0, "nan", "inf"]
    assert short["metadata"]["tokenizer.chat_template"] == TEMPLATE


def test_arrays_in_arrays(tmp_path: Path) -> None:
    nested = [list(range(10)), [1.5, float("nan")], [["a"], [True, False]]]
    path = written(tmp_path / "nested.gguf", "llama", **{"nested": nested})
    shown = " ".join(run(path).split())
    assert "[[0, 1, 2, 3, 4, 5, 6, 7, … 10 in all], [1.5, nan], [[a], [true, false]]]" in shown
    short, full = (json.loads(run(path, *more))["metadata"] for more in (["--json"], ["--json", "--full"]))
    rest = [[1.5, "nan"], [["a"], [True, False]]]
    assert short["llama.nested"] == [{"length": 10, "first": list(range(8))}, *rest]
    assert full["llama.nested"] == [list(range(10)), *rest]


def test_several_sections(model: Path) -> None:
    both = run(model, "--tensors", "--metadata")
    assert "Metadata" in both and "Tensors" in both and "Types" in both and "Memory" not in both
    assert both.index("Metadata") < both.index("Tensors")
    for whole in ("--plan", "--template"):
        assert f"{whole} is printed as it is" in fails(click.UsageError, model, whole, "--memory")


def test_sections_as_json(model: Path, tmp_path: Path) -> None:
    every = json.loads(run(model, "--json"))
    for name, keys in {
        "metadata": ["metadata"],
        "tensors": ["tensors", "types"],
        "memory": ["memory"],
    }.items():
        assert json.loads(run(model, f"--{name}", "--json")) == {key: every[key] for key in keys}
    several = json.loads(run(model, "--json", "--template", "--memory", "--metadata"))
    assert list(several) == ["metadata", "memory", "template"] and several["template"] == TEMPLATE
    mixed = Path(__file__).parent / "fixtures" / "logits" / "mixed_q4_k_m.gguf"
    assert json.loads(run(mixed, "--plan", "--json")) == {"plan": run(mixed, "--plan").splitlines()}
    bare = written(tmp_path / "bare.gguf", "llama", template=None)
    assert "no chat template" in fails(ModelError, bare, "--template", "--json")


def test_template_alone(model: Path, tmp_path: Path) -> None:
    assert run(model, "--template") == TEMPLATE + "\n"
    bare = written(tmp_path / "bare.gguf", "llama", template=None)
    assert "no chat template" in fails(ModelError, bare, "--template")


def test_other_architectures_are_shown_without_memory(tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf", "gpt2")
    output = run(path)
    assert "gpt2.block_count" in output and "Memory: unknown" in output
    assert json.loads(run(path, "--json"))["memory"] is None
    assert f"{path}: general.architecture is 'gpt2'" in fails(ModelError, path, "--memory")


def test_errors(model: Path, tmp_path: Path) -> None:
    for wrong in ("q5_0", "q99"):
        said = fails(click.UsageError, model, "--type-k", wrong)
        assert wrong in said and said.endswith("'f32', 'f16', 'bf16', 'q8_0', 'q4_0'.")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(model.read_bytes()[:200])
    assert "broken.gguf" in fails(GGUFError, broken)


def test_help_shows_examples() -> None:
    output = CliRunner().invoke(show, ["--help"]).output
    assert "Examples:\n    pyllamacpu show model.gguf\n" in output


def test_the_plan_of_a_step() -> None:
    """Op by op, fitted to 80 columns; weights are not loaded for it."""
    lines = run("--plan", Path(__file__).parent / "fixtures" / "logits" / "mixed_q4_k_m.gguf").splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split()[1:3] == ["embed", "tokens"] for line in lines)
    assert any("gated 1" in line for line in lines) and any("→ logits" in line for line in lines)


def test_no_plan_of_what_cannot_be_run(tmp_path: Path) -> None:
    path = written(
        tmp_path / "heads.gguf", "llama", **{"attention.head_count": [4, 2], "attention.key_length": 16}
    )
    assert "layers with different numbers of heads cannot be run" in fails(ModelError, path, "--plan")
