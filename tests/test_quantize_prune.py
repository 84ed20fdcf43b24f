"""--prune-layers: layers that move keep their kind. Covers quantize/prune.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama4_models import NAMES, llama4
from mllama_files import mllama
from quantize_model import write_model

from pyllamacpu.errors import OptionError
from pyllamacpu.gguf import GGUFFile
from pyllamacpu.model.config import ModelConfig
from pyllamacpu.model.llama4 import has_experts
from pyllamacpu.model.registry import architecture
from pyllamacpu.model.weights import check_tensors
from pyllamacpu.quantize.driver import run
from pyllamacpu.quantize.file_types import parse_file_type
from pyllamacpu.quantize.plan import Settings, make_plan

__all__ = ["llama4", "mllama"]  # fixtures


def configs(source: Path, out: Path, *prune: int) -> tuple[ModelConfig, ModelConfig]:
    """Of a model, and of what is left of it, whose tensors are all in their places."""
    with GGUFFile.open(source) as file:
        before = ModelConfig.from_metadata(file.metadata, file.tensors)
        list(run(make_plan(file, Settings(parse_file_type("COPY"), prune=frozenset(prune))), out))
    with GGUFFile.open(out) as file:
        after = ModelConfig.from_metadata(file.metadata, file.tensors)
        check_tensors(file, architecture(after, out).tensors(after, file.tensors))
    assert after.n_layers == before.n_layers - len(prune)
    return before, after


def kept(values: Any, prune: tuple[int, ...]) -> tuple[Any, ...]:
    return tuple(value for layer, value in enumerate(values) if layer not in prune)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prune", [(0,), (1,), (2,), (0, 1)])
def test_layers_of_llama4_keep_their_kind(
    name: str, prune: tuple[int, ...], llama4: dict[str, Path], tmp_path: Path
) -> None:
    try:
        before, after = configs(llama4[name], tmp_path / "out.gguf", *prune)
    except OptionError as error:  # experts in every second layer, for instance, of which one is gone
        assert "layers with experts" in str(error)
        with GGUFFile.open(llama4[name]) as file:
            assert ModelConfig.from_metadata(file.metadata, file.tensors).moe_layer_step > 1
        return
    assert before.llama4 is not None and after.llama4 is not None
    assert after.llama4.roped == kept(before.llama4.roped, prune)
    assert after.llama4.chunked == kept(before.llama4.chunked, prune)
    experts = [has_experts(before, layer) for layer in range(before.n_layers)]
    assert tuple(has_experts(after, layer) for layer in range(after.n_layers)) == kept(experts, prune)


def test_layers_that_attend_to_images_move(mllama: Path, tmp_path: Path) -> None:
    with GGUFFile.open(mllama) as file:
        found = ModelConfig.from_metadata(file.metadata, file.tensors)
    assert found.mllama is not None
    cross, plain = found.mllama.cross, set(range(found.n_layers)) - set(found.mllama.cross)
    before = min(plain)
    _, after = configs(mllama, tmp_path / "out.gguf", before)
    assert after.mllama is not None
    assert after.mllama.cross == tuple(layer - (layer > before) for layer in cross)
    if len(cross) > 1:
        _, after = configs(mllama, tmp_path / "less.gguf", cross[0])
        assert after.mllama is not None and after.mllama.cross == tuple(n - 1 for n in cross[1:])
    with pytest.raises(OptionError, match="attend to images must stay"):
        configs(mllama, tmp_path / "none.gguf", *cross)
    assert not (tmp_path / "none.gguf").exists()


def test_values_of_single_layers_move(tmp_path: Path) -> None:
    per_layer = np.array([64, 64, 64, 64], np.int32)
    source = write_model(tmp_path / "in.gguf", llama__feed_forward_length=per_layer)
    _, after = configs(source, tmp_path / "out.gguf", 1, 2)
    assert after.ffn_dim == 64 or after.ffn_dim == (64, 64)


@pytest.mark.parametrize("layers", [[4], [0, 1, 2, 3]])
def test_layers_that_are_not_there(layers: list[int], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="layers 0 to 3, and one must stay"):
        configs(write_model(tmp_path / "in.gguf"), tmp_path / "out.gguf", *layers)
