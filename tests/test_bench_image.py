"""`bench --image`: a vision tower's parts and the prompt of an image. Covers bench/image.py,
engine/tower_files.py, and the writer of synthetic towers of benchmarks/.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from llama4_vision_models import PER_TILE, llama4_vision
from mllama_files import mllama
from mllama_models import TEXT

from pyllamacpu.bench.cases import BenchOptions
from pyllamacpu.bench.image import image_columns, run_images
from pyllamacpu.cli.bench import bench
from pyllamacpu.engine.tower_files import open_tower
from pyllamacpu.errors import OptionError
from pyllamacpu.gguf.reader import GGUFFile

__all__ = ["llama4_vision", "mllama"]
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_parts_of_the_tower_and_the_prompt(llama4_vision: Path) -> None:
    options = BenchOptions((llama4_vision,), repetitions=2, limit_seconds=0.02, n_threads=(2,))
    found = list(run_images(options))
    assert [result.test for result in found] == [
        "tower encoder", "tower projector", "tile", f"prompt of {PER_TILE}",
    ]  # fmt: skip
    encoder, projector, tile, prompt = found
    both = zip(encoder.samples_ns, projector.samples_ns, strict=True)
    assert tile.samples_ns == tuple(a + b for a, b in both)
    assert tile.cost == encoder.cost + projector.cost
    # 17 rows through q, k, v, out and the MLP of three layers, and the patches; float32 products
    products = 2 * 17 * (3 * (4 * 48**2 + 2 * 48 * 192) + 48 * 588)
    assert encoder.products[1].fp32 == products
    assert tile.row()["products_limit_share"] > 0
    assert prompt.cost.fp32 > 0 and len(image_columns(prompt)) == 6


def test_a_model_that_attends_to_images(mllama: Path) -> None:
    """It makes keys and values of the tower's rows, and has one token in its prompt."""
    options = BenchOptions((mllama,), repetitions=2, limit_seconds=0.02, n_threads=(2,), n_ubatch=(8,))
    found = list(run_images(options))
    assert [result.test for result in found][-2:] == ["tile", "keys of 17"]
    keys, text = found[-1], TEXT
    kv_dim = text["hidden_size"] // text["num_attention_heads"] * text["num_key_value_heads"]
    n_cross = len(text["cross_attention_layers"])
    assert keys.products[1].fp32 == n_cross * 2 * 2 * 17 * text["hidden_size"] * kv_dim
    assert keys.seconds > 0 and len(keys.samples_ns) == 2 and keys.row()["products_limit_share"] > 0


def test_the_command(llama4_vision: Path, tmp_path: Path) -> None:
    tower = llama4_vision.with_name(f"mmproj-{llama4_vision.name}")
    given = ["-m", str(tower), "--image", "--no-limits", "-r", "1", "-o", "json", "--no-progress"]
    done = CliRunner().invoke(bench, given)
    assert done.exit_code == 0, done.output
    rows = json.loads(done.output)
    assert [row["test"] for row in rows] == ["tower encoder", "tower projector", "tile"]
    assert {row["model_filename"] for row in rows} == {str(tower)}
    assert {row["model_type"] for row in rows} != {str(tower)}
    done = CliRunner().invoke(bench, ["-m", str(tower), "--image", "--batched"])
    assert done.exit_code == 2 and "neither" in done.output
    done = CliRunner().invoke(bench, ["-m", str(tower), "--image", "-t", "1,2", "--precision", "fast,exact"])
    assert done.exit_code == 2 and "--image takes one value of n_threads, precision" in done.output
    done = CliRunner().invoke(bench, [*given, "--precision", "exact"])
    assert {row["precision"] for row in json.loads(done.output)} == {"exact"}
    alone = tmp_path / "text.gguf"
    alone.write_bytes(llama4_vision.read_bytes())
    with pytest.raises(OptionError, match="its vision tower is missing"):
        list(run_images(BenchOptions((alone,))))


def test_a_tower_is_found_by_its_name_and_what_it_fits(llama4_vision: Path, tmp_path: Path) -> None:
    model, tower = tmp_path / "model-q4_k_m.gguf", llama4_vision.with_name(f"mmproj-{llama4_vision.name}")
    model.write_bytes(llama4_vision.read_bytes())
    for name in ("mmproj-other-f16.gguf", "mmproj-model-q8_0.gguf", "mmproj-model-f16.gguf"):
        (tmp_path / name).write_bytes(tower.read_bytes())
    (tmp_path / "mmproj-model-bf16.gguf").write_bytes(b"GGUF, and then nothing")
    with GGUFFile.open(model) as file:
        found = open_tower(file, 64, None)
        assert found is not None and found.file.paths[0].name == "mmproj-model-f16.gguf"
        found.file.close()
        assert open_tower(file, 96, None) is None
        assert open_tower(file, 64, False) is None


def test_a_synthetic_tower(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = [sys.argv[1]]\n"
        "from pathlib import Path\n"
        "import synthetic_tower as made\n"
        "from pyllamacpu.gguf.types import TensorType\n"
        "small = made.Llama4VisionConfig(64, 64, 2, 2, 96, 56, 14, 2, 1e-5, 1e4)\n"
        "made.write(Path(sys.argv[2]), TensorType.Q8_0, small, 32)\n"
    )
    path = tmp_path / "mmproj.gguf"
    subprocess.run([sys.executable, "-c", code, str(BENCHMARKS), str(path)], check=True)
    options = BenchOptions((path,), repetitions=1, limits=False, n_threads=(1,))
    assert [result.n_rows for result in run_images(options)] == [4, 4, 4]
