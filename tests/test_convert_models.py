"""Converted models of every kind give transformers' logits (tools/make_convert_fixtures.py).

Covers convert/checkpoint_source.py, convert/models/names.py, convert/models/rope.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from conftest import FIXTURES
from convert_models import BY_NAME, MODELS, ROWS, Model, token_ids, weights, write_checkpoint

from pyllamacpu import Llama
from pyllamacpu.convert.conversion import ConvertOptions
from pyllamacpu.convert.sources import plan_conversion
from pyllamacpu.gguf import GGUFFile

LIMITS = {"f32": 2e-4, "f16": 2e-3}  # largest difference, in units of the logits' standard deviation
LOGITS = FIXTURES / "convert" / "logits.npz"


def expected(name: str) -> npt.NDArray[np.float32]:
    with np.load(LOGITS) as data:
        return np.asarray(data[name])


def convert(source: Path, outtype: str, **options: object) -> Path:
    """The path of the converted file."""
    target = source.parent / f"{source.name}-{outtype}.gguf"
    plan = plan_conversion(source, ConvertOptions(outfile=str(target), outtype=outtype, **options))  # type: ignore[arg-type]
    plan.run()
    return target


def logits(path: Path, name: str) -> npt.NDArray[np.float32]:
    with Llama(str(path), n_ctx=128, n_threads=1, kv_type="f32", verbose=False) as llm:
        return np.asarray(llm.logits([int(i) for i in token_ids(name)]))[list(ROWS)]


def worst_gap(path: Path, fixture: str) -> float:
    wanted = expected(fixture)
    return float(np.abs(logits(path, fixture).astype(np.float64) - wanted).max() / wanted.std())


@pytest.mark.parametrize("outtype", LIMITS)
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_logits_are_those_of_transformers(tmp_path: Path, model: Model, outtype: str) -> None:
    path = convert(write_checkpoint(tmp_path / model.name, model), outtype)
    assert worst_gap(path, model.fixture) <= LIMITS[outtype]


def test_the_fixtures_tell_wrong_conversions_from_right_ones() -> None:
    """Each kind of rope, bias and window differs from the plain model by far more than is tolerated."""
    for name, other in (
        ("old_linear", "gqa"),
        ("old_yarn", "yarn_mscale"),
        ("old_llama3", "mqa"),
        ("window", "gqa"),
    ):
        wanted = expected(name)
        assert np.abs(wanted - expected(other)).max() / wanted.std() > 0.1


def test_a_window_that_is_left_out_changes_the_logits(tmp_path: Path) -> None:
    path = convert(write_checkpoint(tmp_path / "window", BY_NAME["window"]), "f32")
    from pyllamacpu.convert.metadata_edits import MetadataEdits

    plan = plan_conversion(
        path,
        ConvertOptions(
            outfile=str(tmp_path / "wide.gguf"),
            metadata_edits=MetadataEdits(removed=frozenset(["llama.attention.sliding_window"])),
        ),
    )
    plan.run()
    assert worst_gap(tmp_path / "wide.gguf", "window") > 0.05


def test_vectors_stay_f32_and_matrices_get_the_type(tmp_path: Path) -> None:
    path = convert(write_checkpoint(tmp_path / "biases", BY_NAME["biases"]), "q8_0")
    with GGUFFile.open(path) as file:
        for name, info in file.tensors.items():
            assert info.type.name == ("F32" if len(info.shape) == 1 else "Q8_0"), name
        stored = weights(BY_NAME["biases"])["model.layers.1.mlp.up_proj.bias"]
        assert np.array_equal(file.data("blk.1.ffn_up.bias").view(np.float32), stored)
