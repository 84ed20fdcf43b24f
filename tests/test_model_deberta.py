"""DeBERTa classifiers: logits as transformers computes them, the same bits whatever is beside a sequence.

Covers model/deberta.py, model/deberta_attention.py, model/layer_norm.py, engine/encoder.py,
convert/models/deberta.py, convert/classifier.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_letters import Result, run  # noqa: F401
from deberta_models import FIXTURE, VARIANTS, converted, token_ids, write_checkpoint

from pyllamacpu import Llama
from pyllamacpu.engine.encoder import Encoder
from pyllamacpu.errors import CheckpointError, ContextError, ModelError, OptionError, TokenizerError
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.gguf.writer import GGUFWriter
from pyllamacpu.model.deberta_attention import DebertaAttention
from pyllamacpu.model.weights import Matrix

EXPECTED = json.loads(FIXTURE.read_text())


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("deberta")
    return request.param, write_checkpoint(folder / "checkpoint", request.param)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deberta")
    return converted(write_checkpoint(folder / "checkpoint"), folder / "model.gguf")


@pytest.fixture(scope="module")
def encoder(file: Path) -> Iterator[Encoder]:
    model = Encoder.open(file, n_threads=2)
    yield model
    model.close()


def test_the_fixture_is_of_these_ids() -> None:
    assert EXPECTED["ids"] == token_ids()


@pytest.mark.parametrize(
    ("outtype", "most", "most_harsh"), [("f32", 1e-5, 5e-5), ("f16", 5e-3, 0.05), ("q8_0", 0.1, 0.3)]
)
def test_logits_are_those_of_transformers(
    variant: tuple[str, Path], outtype: str, most: float, most_harsh: float, tmp_path: Path
) -> None:
    name, folder = variant
    most = most_harsh if name == "harsh" else most
    model = Encoder.open(converted(folder, tmp_path / "model.gguf", outtype), n_threads=2)
    expected = np.array(EXPECTED["logits"][name])
    assert np.abs(model.logits(token_ids()) - expected).max() < most
    model.close()


def test_packed_matrices_take_hardly_more_than_the_file(tmp_path: Path) -> None:
    """Also where 16-bit products are chosen: with scales they take a sixteenth more of 16-bit weights, which
    are a part of the file, and would take twice the room of 8-bit ones.
    """
    path = converted(write_checkpoint(tmp_path / "checkpoint"), tmp_path / "model.gguf", "q8_0")
    model = Encoder.open(path, n_threads=2)
    packed = [w for w in model._model.weights.values() if isinstance(w, Matrix)]
    kinds = {matrix.type for matrix in packed}
    assert {TensorType.Q8_0, TensorType.F16} <= kinds
    with GGUFFile.open(path) as file:
        for matrix in packed:
            padded = -(-matrix.rows // 16) * 16  # whole panels
            stored = file.tensors[matrix.name].n_bytes * padded / matrix.rows
            assert matrix.n_bytes <= stored * (17 / 16 if matrix.type.is_float else 1)
    model.close()


@pytest.mark.parametrize("outtype", ["f32", "q8_0"])
def test_bits_do_not_depend_on_the_batch_or_on_threads(file: Path, outtype: str, tmp_path: Path) -> None:
    if outtype != "f32":
        file = converted(write_checkpoint(tmp_path / "checkpoint"), tmp_path / "model.gguf", outtype)
    ids = [*token_ids(), *token_ids()[::-1]]
    found = []
    for n_threads, n_batch in ((1, 96), (3, 4096), (2, 130)):
        model = Encoder.open(file, n_threads=n_threads, n_batch=n_batch)
        found.append(model.logits(ids))
        found.append(np.concatenate([model.logits([window]) for window in ids]))
        model.close()
    assert all(np.array_equal(one, found[0]) for one in found)


def test_buffers_grow_with_the_step(file: Path) -> None:
    model = Encoder.open(file, n_threads=2, n_batch=4096)
    short, long = token_ids()[2], token_ids()[-1]
    first, few = model.logits([short]), model._native.n_bytes
    alone = model.logits([long])
    assert np.array_equal(model.logits([long] * 40), np.repeat(alone, 40, axis=0))
    assert model._native.n_bytes > 8 * few
    assert np.array_equal(model.logits([short]), first)
    model.close()


def test_quantize_makes_the_same_as_convert(file: Path, tmp_path: Path, run: Callable[..., Result]) -> None:
    done = run("quantize", str(file), str(tmp_path / "q8.gguf"), "Q8_0")
    assert done.code == 0, done.err
    model = Encoder.open(tmp_path / "q8.gguf")
    assert types_of(model) == Q8_0_TYPES
    assert np.abs(model.logits(token_ids()) - np.array(EXPECTED["logits"]["shared"])).max() < 0.1
    model.close()


def test_what_decides_most_is_not_rounded_to_8_bits(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint")
    model = Encoder.open(converted(folder, tmp_path / "model.gguf", "q8_0"), n_threads=1)
    assert types_of(model) == Q8_0_TYPES
    model.close()


def types_of(model: Encoder) -> dict[str, str]:
    """Of matrices, by name."""
    return {
        name.removesuffix(".weight"): tensor.type.name
        for name, tensor in model.file.tensors.items()
        if len(tensor.shape) > 1
    }


Q8_0_TYPES = {
    "token_embd": "Q8_0",
    **{f"blk.{i}.{part}": "Q8_0" for i in range(2) for part in ("attn_q", "attn_k")},
    **{f"blk.{i}.{part}": "F16" for i in range(2) for part in ("attn_v", "attn_output", "ffn_down")},
    **{f"blk.{i}.attn_rel_{part}": "F16" for i in range(2) for part in "qk"},
    "blk.0.ffn_up": "Q8_0",
    "blk.1.ffn_up": "F16",  # the last layer's has one row for each text
    "cls": "F32",
    "cls.output": "F32",
}


def test_what_is_no_window_is_refused(encoder: Encoder) -> None:
    with pytest.raises(ContextError, match="97 tokens are more than the model's window of 96"):
        encoder.logits([[1] * 97])
    with pytest.raises(OptionError, match="no tokens"):
        encoder.logits([[1], []])
    with pytest.raises(TokenizerError, match="480"):
        encoder.logits([[480]])
    assert encoder.logits([]).shape == (0, 3)
    with pytest.raises(TokenizerError, match="whole numbers"):
        encoder.logits([5])  # type: ignore[list-item]


def test_numbers_that_say_nothing_are_an_error(file: Path, tmp_path: Path) -> None:
    """They are below any threshold: an attack would pass."""
    damaged = tmp_path / "damaged.gguf"
    with (
        GGUFFile.open(file) as whole,
        GGUFWriter(damaged, str(whole.metadata["general.architecture"])) as out,
    ):
        out.copy_metadata(whole.metadata, skip=("general.architecture",))
        for name, info in whole.tensors.items():
            values = whole.data(name).view(np.float32).reshape(info.shape)
            out.add_array(name, values * np.float32(3e38) if name == "cls.output.weight" else values)
    model = Encoder.open(damaged, n_threads=1)
    with pytest.raises(ModelError, match=r"damaged\.gguf: the model's output is NaN or infinite"):
        model.logits([[5, 6, 7]])
    model.close()


def test_it_is_no_model_to_chat_with(file: Path, starter_model: Path, run: Callable[..., Result]) -> None:
    with pytest.raises(ModelError, match="prompt-guard"):
        Llama(str(file), verbose=False)
    with pytest.raises(ModelError, match="a llama model does not classify texts"):
        Encoder.open(starter_model)
    done = run("complete", "-m", str(file), "-p", "Hi")
    assert done.code == 1 and "prompt-guard" in done.err


def test_show(file: Path, run: Callable[..., Result]) -> None:
    shown = json.loads(run("show", str(file), "--json").out)
    assert shown["memory"][0]["kv"] == 0 and shown["memory"][0]["scratch"] > 0
    assert shown["metadata"]["deberta-v2.classifier.output_labels"] == ["BENIGN", "INJECTION", "JAILBREAK"]
    assert "disentangled_attention" in run("show", str(file), "--plan").out


def test_buckets_widen_with_the_distance() -> None:
    table = DebertaAttention(256, 512, True, ("a", "b")).bucket_table(512)
    by_distance = dict(zip(range(-511, 512), (table - 256).astype(int).tolist(), strict=True))
    assert [by_distance[d] for d in (-128, -3, 0, 1, 128, 129, 130, 511)] == [
        -128,
        -3,
        0,
        1,
        128,
        129,
        130,
        255,
    ]
    assert by_distance[-511] == -255
    assert all(by_distance[d] <= by_distance[d + 1] for d in range(-511, 511))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"conv_kernel_size": 3}, "conv_kernel_size is 3"),
        ({"pos_att_type": ["c2p"]}, "only c2p with p2c"),
        ({"position_biased_input": True}, "position_biased_input"),
        ({"type_vocab_size": 2}, "type_vocab_size"),
        ({"relative_attention": False}, "relative positions"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"unheard_of": 5}, "unheard_of"),
        ({"intermediate_size": 95}, "intermediate.dense.weight"),
        ({"num_hidden_layers": 3}, "layer.2"),
        ({"num_hidden_layers": 1}, "not understood"),
        ({"id2label": {"first": "x", "1": "y"}}, "id2label"),
        ({"id2label": {"0": "x"}}, "id2label"),
    ],
)
def test_other_models_of_the_class_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=said):
        converted(folder, tmp_path / "model.gguf")


def test_damaged_metadata_is_refused(
    file: Path, tmp_path: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pyllamacpu.convert.conversion.why_it_would_not_open", lambda *_: ""
    )  # or none is made
    for key, value in (
        ("attention.relative_buckets_count", "u32:1"),
        ("attention.max_relative_distance", "u32:4"),
        ("context_length", "u32:70000"),
        ("classifier.output_labels", "str:x"),
        ("attention.logarithmic_buckets", "str:x"),
    ):
        broken = tmp_path / "broken.gguf"
        edit = f"deberta-v2.{key}={value}"
        assert run("convert", str(file), "-o", str(broken), "--metadata", edit, "--force").code == 0
        with pytest.raises(ModelError, match=r"positions cannot|must be"):
            Encoder.open(broken)


def test_the_weights_that_lack_are_named(file: Path) -> None:
    opened = GGUFFile.open(file)
    del opened.tensors["blk.1.attn_rel_q.weight"]
    with pytest.raises(ModelError, match=r"blk\.1\.attn_rel_q\.weight is missing"):
        Encoder(opened)
