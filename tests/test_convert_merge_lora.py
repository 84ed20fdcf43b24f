"""Adapters merged into a GGUF file: the merged model's logits are PEFT's (convert/merge_lora.py)."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from convert_models import ROWS, token_ids
from gguf_build import Build
from llama4_models import converted as llama4_converted
from llama4_models import opened as llama4_opened
from lora_cases import RUNS
from test_convert_models import LIMITS, convert
from test_engine_adapters import logits, prompt, write_adapter
from test_engine_adapters import merged as summed
from test_model_lora import LOGITS, adapter_file, converted, model_for, pair, two_ranks

from pyllamacpu import Llama
from pyllamacpu.convert import merge_lora
from pyllamacpu.convert.conversion import ConvertOptions
from pyllamacpu.convert.sources import plan_conversion
from pyllamacpu.errors import AdapterError, GGUFError, ModelError, OptionError, OutputError
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.model.dequantize import dequantize


@pytest.mark.parametrize("run", ["all", "mixed"])
def test_merged_logits_are_those_of_peft(run: str, tmp_path: Path) -> None:
    files = tuple((str(converted(tmp_path / name, name)), scale) for name, scale in RUNS[run])
    model = model_for(tmp_path, RUNS[run][0][0])
    merged = convert(model, "auto", adapters=files)
    with np.load(LOGITS) as data, Llama(merged, n_ctx=128, n_threads=1, kv_type="f32") as llm:
        found = np.asarray(llm.logits([int(i) for i in token_ids("gqa")]))[list(ROWS)]
        assert np.abs(found - data[run]).max() < LIMITS["f32"] * data[run].std()


def test_experts_merged_are_experts_adapted(tmp_path: Path) -> None:
    path = llama4_converted("scout", tmp_path)
    with_adapter = llama4_opened(path)
    adapter = write_adapter(tmp_path / "a.gguf", with_adapter, 5, 7)
    with_adapter.load_adapters([(adapter, 0.75)])
    merged = llama4_opened(convert(path, "auto", adapters=((str(adapter), 0.75),)))
    tokens = prompt(merged, 40)
    found, wanted = logits(merged, tokens, ()), logits(with_adapter, tokens, with_adapter.default_adapters)
    assert np.abs(found - wanted).max() < 2e-4 * wanted.std()
    merged.close()
    with_adapter.close()


def test_a_quantized_model_is_quantized_again_and_that_is_said(tmp_path: Path) -> None:
    adapter, model = converted(tmp_path / "all", "all"), model_for(tmp_path, "all", "q8_0")
    options = ConvertOptions(outfile=str(tmp_path / "merged.gguf"), adapters=((str(adapter), 0.5),))
    plan = plan_conversion(model, options)
    assert any("quantized again" in note for note in plan.notes)
    plan.run()
    with GGUFFile.open(tmp_path / "merged.gguf") as file, closing(llama4_opened(model)) as engine:
        names = {
            name.removesuffix(".lora_a").removesuffix(".lora_b") for name in GGUFFile.open(adapter).tensors
        }
        assert len(names) > 10
        for name in names:
            wanted = summed(engine, name, adapter, 0.5 * 12 * 24**0.5 / 24).view(np.float32).reshape(-1, 32)
            info = file.tensors[name]
            found = dequantize(file.data(name), info.type, info.shape).reshape(-1, 32)
            step = np.abs(wanted).max(1, keepdims=True) / 127
            assert info.type.name == "Q8_0"
            assert np.all(np.abs(found - wanted) <= (0.5 + 127 / 2048) * step), name  # the scale is a float16


def test_what_cannot_be_merged(tmp_path: Path) -> None:
    model = model_for(tmp_path, "all")
    good = adapter_file(tmp_path / "good.gguf", pair)
    for adapter, says in (
        (adapter_file(tmp_path / "ranks.gguf", two_ranks), "do not fit the model's"),
        (adapter_file(tmp_path / "no.gguf", lambda b: pair(b, "blk.7.attn_q.weight")), "has no such weight"),
        (adapter_file(tmp_path / "norm.gguf", lambda b: pair(b, "output_norm.weight")), "norms and biases"),
        (model, "is not an adapter"),
    ):
        with pytest.raises(AdapterError, match=says):
            convert(model, "auto", adapters=((str(adapter), 1.0),))
    with pytest.raises(ModelError, match=r"good\.gguf: is a LoRA adapter and not a model"):
        convert(good, "auto", adapters=((str(good), 1.0),))
    for scale in (1e300, float("nan")):
        with pytest.raises(OptionError, match="the scale of an adapter is"):
            convert(model, "auto", adapters=((str(good), scale),))
    with pytest.raises(OptionError, match="convert the checkpoint first"):
        plan_conversion(tmp_path / "base" / "gqa", ConvertOptions(adapters=((str(good), 1.0),)))
    with pytest.raises(OutputError, match="good"):  # an input
        options = ConvertOptions(outfile=str(good), adapters=((str(good), 1.0),), force=True)
        plan_conversion(model, options)


def test_an_adapter_cut_short_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, adapter = model_for(tmp_path, "all"), adapter_file(tmp_path / "a.gguf", wide_pair)
    names = merge_lora.adapter_names

    def cut(file: GGUFFile) -> list[str]:
        os.truncate(adapter, 4096)
        return names(file)

    monkeypatch.setattr(merge_lora, "adapter_names", cut)
    with pytest.raises(GGUFError, match=r"a\.gguf"):
        convert(model, "auto", adapters=((str(adapter), 1.0),))


def wide_pair(build: Build) -> None:
    pair(build, rank=64)
