"""Adapters of PEFT, converted and applied, give PEFT's logits (tools/make_lora_fixtures.py); what cannot be
applied is one clear error. Covers model/lora.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES
from convert_models import BY_NAME, DIM, FFN, ROWS, token_ids, write_checkpoint
from gguf_build import F32, U32, Build
from lora_cases import BY_CASE, RUNS, write_case
from test_convert_models import convert

from pyllamacpu import Llama
from pyllamacpu.engine.engine import Engine
from pyllamacpu.errors import AdapterError, ModelError, OptionError
from pyllamacpu.model.lora import load_adapter
from pyllamacpu.safety import PromptGuard

LOGITS = FIXTURES / "lora" / "logits.npz"


def converted(folder: Path, name: str, outtype: str = "f32") -> Path:
    """The adapter `name`, beside its base model."""
    base = BY_CASE[name].base
    write_checkpoint(folder / "base" / base, BY_NAME[base])
    return convert(write_case(folder / "lora" / name, BY_CASE[name]), outtype, base=folder / "base" / base)


def model_for(folder: Path, name: str, outtype: str = "f32") -> Path:
    base = BY_CASE[name].base
    return convert(write_checkpoint(folder / "base" / base, BY_NAME[base]), outtype)


@pytest.mark.parametrize("run", RUNS)
def test_logits_are_those_of_peft(run: str, tmp_path: Path) -> None:
    """Several adapters at once too; as F16, which holds the fixtures' numbers, the same bits."""
    parts = RUNS[run]
    base = BY_NAME[BY_CASE[parts[0][0]].base]
    ids = [int(i) for i in token_ids(base.fixture)]
    with np.load(LOGITS) as data:
        wanted = data[run]
    found = []
    for outtype in ("f32", "f16"):
        files = [(converted(tmp_path / outtype, name, outtype), scale) for name, scale in parts]
        model = model_for(tmp_path, parts[0][0])
        with Llama(model, n_ctx=128, n_threads=1, kv_type="f32", lora_path=files) as llm:
            found.append(np.asarray(llm.logits(ids))[list(ROWS)])
    assert np.abs(found[0] - wanted).max() < 2e-4 * wanted.std()
    assert np.array_equal(found[0], found[1])


def test_a_quantized_base_with_a_float_adapter(tmp_path: Path) -> None:
    """QLoRA: what the adapter adds is what it adds to the base in floats, but for the base's own rounding. An
    adapter of Q8_0 is read too.
    """
    ids = [int(i) for i in token_ids("gqa")]
    logits = {}
    for base in ("f32", "q8_0"):
        model = model_for(tmp_path, "all", base)
        for adapter in ("none", "f16", "q8_0"):
            path = None if adapter == "none" else converted(tmp_path / adapter, "all", adapter)
            with Llama(model, n_ctx=128, n_threads=1, lora_path=path) as llm:
                logits[base, adapter] = np.asarray(llm.logits(ids))
    std = logits["f32", "f16"].std()
    apart = {key: np.abs(value - logits["f32", "f16"]).mean() / std for key, value in logits.items()}
    assert apart["f32", "none"] > 0.5
    assert apart["q8_0", "f16"] < 3 * np.abs(logits["q8_0", "none"] - logits["f32", "none"]).mean() / std
    assert 0 < apart["f32", "q8_0"] < 0.05


Q, DOWN = "blk.0.attn_q.weight", "blk.0.ffn_down.weight"


def tensor(build: Build, name: str, rows: int, cols: int, value: float = 0.1) -> None:
    build.add_tensor(name, (cols, rows), 0, build.pack(f"{rows * cols}f", *[value] * (rows * cols)))


def pair(build: Build, name: str = Q, rank: int = 4, rows: int = DIM, cols: int = DIM) -> None:
    tensor(build, f"{name}.lora_a", rank, cols)
    tensor(build, f"{name}.lora_b", rows, rank)


def adapter_file(path: Path, fill: Callable[[Build], None], **texts: str) -> Path:
    """An adapter for the model "gqa" whose tensors are those of `fill`; texts replace values of its keys."""
    build = Build()
    keys = {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora"}
    for key, text in (keys | {name.replace("__", "."): text for name, text in texts.items()}).items():
        if text:
            build.add_string(key, text.encode())
    if "alora" in texts:
        build.add_numbers("adapter.alora.invocation_tokens", U32, "I", [1, 2])
    if texts.get("alpha") != "no":
        build.add("adapter.lora.alpha", F32, build.pack("f", float(texts.get("alpha", 8))))
    fill(build)
    path.write_bytes(build.bytes())
    return path


def lonely(build: Build) -> None:
    pair(build)
    tensor(build, f"{DOWN}.lora_a", 4, FFN)


def dora(build: Build) -> None:
    pair(build)
    tensor(build, f"{Q}.lora_magnitude_vector", 1, DIM)


def two_ranks(build: Build) -> None:
    tensor(build, f"{Q}.lora_a", 4, DIM)
    tensor(build, f"{Q}.lora_b", DIM, 8)


def not_finite(build: Build) -> None:
    tensor(build, f"{Q}.lora_a", 4, DIM)
    tensor(build, f"{Q}.lora_b", DIM, 4, float("nan"))


BAD: list[tuple[Callable[[Build], None], dict[str, str], str]] = [
    (pair, {"general__type": "model"}, "is not an adapter"),
    (pair, {"general__type": ""}, "not stated"),
    (pair, {"adapter__type": "dora"}, "of type 'dora'"),
    (pair, {"general__architecture": "llama4"}, "for llama4 models, and this one is llama"),
    (pair, {"alora": ""}, "activated LoRA"),
    (pair, {"alpha": "nan"}, "alpha is nan"),
    (pair, {"alpha": "1e38"}, "from 1e-09 to 1e"),  # times a scale it would leave what float32 holds
    (pair, {"alpha": "1e-38"}, "from 1e-09 to 1e"),
    (pair, {"alpha": "no"}, "alpha is None"),
    (lambda build: None, {}, "has no tensors"),
    (lambda build: pair(build, rows=DIM // 2), {}, "do not fit the model's"),
    (lambda build: pair(build, cols=32), {}, "do not fit the model's"),
    (lambda build: pair(build, "blk.7.attn_q.weight"), {}, r"blk\.7\.attn_q\.weight: the model has no such"),
    (lambda build: pair(build, "blk.0.attn_norm.weight", cols=1), {}, "norms and biases cannot be changed"),
    (lambda build: tensor(build, "blk.0.attn_norm.weight", 1, DIM), {}, "neither the A nor the B"),
    (lambda build: pair(build, rank=257), {}, "the rank is 257; 256 is the limit"),
    (lonely, {}, r"ffn_down\.weight\.lora_b is missing"),
    (dora, {}, "DoRA"),
    (two_ranks, {}, "do not fit the model's"),
    (not_finite, {}, "not finite"),
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with closing(Engine.open(model_for(tmp_path_factory.mktemp("lora"), "all"), n_threads=1)) as engine:
        yield engine


@pytest.mark.parametrize(("fill", "texts", "says"), BAD)
def test_what_cannot_be_applied_is_one_error(
    engine: Engine, tmp_path: Path, fill: Callable[[Build], None], texts: dict[str, str], says: str
) -> None:
    """It names the file, and leaves the engine as it was."""
    before = engine.plan, len(engine.adapters), engine.default_adapters
    path = adapter_file(tmp_path / "bad.gguf", fill, **texts)
    with pytest.raises(AdapterError, match=rf"bad\.gguf: .*{says}") as caught:
        engine.load_adapters([(path, 1.0)])
    assert "\n" not in str(caught.value)
    assert (engine.plan, len(engine.adapters), engine.default_adapters) == before


def test_rank_256_and_an_alpha_of_zero(engine: Engine, tmp_path: Path) -> None:
    """alpha 0: B A as it is."""
    path = adapter_file(tmp_path / "wide.gguf", lambda build: pair(build, rank=256), alpha="0")
    adapter = load_adapter(path, "llama", engine.model.weights, engine.pool)
    assert (adapter.rank, adapter.pairs[Q].factor, adapter.name) == (256, 1.0, "wide")


def test_arguments_of_llama(tmp_path: Path) -> None:
    model = str(model_for(tmp_path, "all"))
    good = adapter_file(tmp_path / "good.gguf", pair)
    with Llama(model, n_threads=1, lora_path=str(good), lora_scale=0.5) as llm:
        assert [(a.name, scale) for a, scale in llm.engine.default_adapters] == [("good", 0.5)]
    for path, scale, says in (
        (tmp_path / "no.gguf", 1.0, "no such file"),
        (3, 1.0, "give a file"),
        ([(good, "1")], 1.0, "must be a number"),
        ([(good, float("nan"))], 1.0, "must be a number"),
        (good, 1e9, "must be a number"),
    ):
        with pytest.raises(OptionError, match=says):
            Llama(model, n_threads=1, lora_path=path, lora_scale=scale)
    with pytest.raises(AdapterError, match="is not an adapter"):
        Llama(model, n_threads=1, lora_path=model)
    with pytest.raises(ModelError, match="is a LoRA adapter and not a model"):
        Llama(good, n_threads=1)
    with pytest.raises(ModelError, match=r"good\.gguf: is a LoRA adapter and not a model"):
        Llama(model, n_threads=1, draft_model=str(good))
    with pytest.raises(ModelError, match="is a LoRA adapter and not a model"):
        PromptGuard(good)
    with pytest.warns(UserWarning, match="lora_scale does nothing without a lora_path"):
        Llama(model, n_threads=1, lora_scale=0.5).close()
    with pytest.raises(AdapterError, match="pyllamacpu convert"):
        Llama(model, n_threads=1, lora_path=tmp_path)


def test_adapters_that_are_loaded_later(tmp_path: Path) -> None:
    good = adapter_file(tmp_path / "good.gguf", pair)
    with Llama(model_for(tmp_path, "all"), n_threads=1) as llm:
        llm.load_adapters(str(good))
        llm.load_adapters(good)
        llm.load_adapters([good, (good, 0.25)])
        assert [scale for _, scale in llm.engine.default_adapters] == [1.0, 1.0, 1.0, 0.25]
        for files in ({str(good): 0.5}, 3, None):
            with pytest.raises(OptionError, match=r"^files=.*give a file, or a list of files"):
                llm.load_adapters(files)  # type: ignore[arg-type]
        with pytest.raises(OptionError, match=r"files: 0\.5 is neither"):
            llm.load_adapters((good, 0.5))  # type: ignore[arg-type]
        assert len(llm.adapters) == 4
