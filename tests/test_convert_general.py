"""general.*: names taken apart, model cards read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from convert_models import BY_NAME, write_checkpoint
from tokenizer_build import byte_level

from pyllamacpu.convert.conversion import ConvertOptions
from pyllamacpu.convert.general import NameParts, general_keys, parse_name, read_card, size_label
from pyllamacpu.convert.sources import plan_conversion
from pyllamacpu.gguf import GGUFFile

CARD = """---
license: llama3.2
license_name: "llama community"
language:
- en
- de
tags: [chat, 'small']
pipeline_tag: text-generation
base_model:
  - meta-llama/Llama-3.2-1B
datasets:
- org/some-data-v1.0
model-index:
- name: other
  results:
  - task: x
---
# A model
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "meta-llama/Llama-3.2-1B-Instruct",
            NameParts("Llama 3.2 1B Instruct", "Meta Llama", "Llama-3.2", "1B", "Instruct"),
        ),
        (
            "TinyLlama-1.1B-Chat-v1.0",
            NameParts("TinyLlama 1.1B Chat v1.0", "", "TinyLlama", "1.1B", "Chat", "v1.0"),
        ),
        ("SmolLM2-135M", NameParts("SmolLM2 135M", "", "SmolLM2", "135M")),
        ("Mixtral-8x7B-v0.1", NameParts("Mixtral 8x7B v0.1", "", "Mixtral", "8x7B", "", "v0.1")),
        ("model", NameParts("Model", "", "model")),
        ("My own model", NameParts("My own model")),
    ],
)
def test_names(text: str, expected: NameParts) -> None:
    assert parse_name(text) == expected


def test_sizes() -> None:
    assert [size_label(n) for n in (134_515_008, 1_235_814_400, 70_553_706_496, 95_000)] == [
        *("135M", "1.2B", "71B", "95K")
    ]
    assert size_label(109_000_000_000, 16, 96_000_000_000) == "16x19B"


def keys(folder: Path, config: dict[str, Any] | None = None, **generation: Any) -> dict[str, Any]:
    return {key.name: key.value for key in general_keys(folder, config or {}, generation, "42M")}


def test_a_model_card(tmp_path: Path) -> None:
    folder = tmp_path / "Llama-3.2-1B-Tuned"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    found = keys(folder, temperature=0.6, top_p=0.9, top_k=50)
    assert found["general.type"] == "model"
    assert found["general.name"] == "Llama 3.2 1B Tuned"
    assert (found["general.basename"], found["general.size_label"]) == ("Llama-3.2", "1B")
    assert found["general.license"] == "llama3.2"
    assert found["general.license.name"] == "llama community"
    assert found["general.languages"] == ["en", "de"]
    assert found["general.tags"] == ["chat", "small", "text-generation"]
    assert found["general.base_model.count"] == 1
    assert found["general.base_model.0.name"] == "Llama 3.2 1B"
    assert found["general.base_model.0.organization"] == "Meta Llama"
    assert found["general.base_model.0.repo_url"].endswith("/meta-llama/Llama-3.2-1B")
    assert found["general.dataset.0.repo_url"].endswith("/org/some-data-v1.0")
    assert (found["general.sampling.temp"], found["general.sampling.top_k"]) == (0.6, 50)


def test_without_a_card(tmp_path: Path) -> None:
    found = keys(tmp_path, {"_name_or_path": "org/Some-7B-v0.3"})
    assert found["general.name"] == "Some 7B v0.3"
    assert (found["general.organization"], found["general.version"]) == ("Org", "v0.3")
    assert keys(tmp_path, {"_name_or_path": "/home/me/model"})["general.size_label"] == "42M"


def test_a_snapshot_in_the_hubs_cache_is_called_by_its_repository(tmp_path: Path) -> None:
    """And not by its commit, also where it is given by a link."""
    folder = tmp_path / "models--some--Small-Llama-1B" / "snapshots" / ("0123456789" * 4)
    folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    for given in (folder, tmp_path / "link"):
        found = keys(given)
        assert (found["general.name"], found["general.organization"]) == ("Small Llama 1B", "Some")


@pytest.mark.parametrize(
    "text", ["", "no front matter", "---\nlicense: mit\n", "---\n- a\n  - b\n: c\n---\n"]
)
def test_cards_that_say_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert read_card(tmp_path / "README.md") == {}


@pytest.mark.parametrize(
    ("name", "value", "written"),
    [
        ("top_k", 50.0, 50), ("top_k", 50, 50), ("top_k", -1, -1), ("top_k", 50.5, None),
        ("top_k", 1 << 31, None), ("top_k", 10**400, None), ("top_k", True, None),
        ("top_p", 1, 1.0), ("top_p", 10**400, None), ("temperature", 1e39, None), ("min_p", [0.5], None),
        ("temperature", float("nan"), None), ("top_k", float("inf"), None), ("temperature", "0.5", None),
        ("repetition_penalty", 1.1, 1.1), ("repetition_penalty", None, None), ("temperature", -1e39, None),
    ],
)  # fmt: skip
def test_sampling_that_does_not_fit_is_left_out_with_a_note(
    tmp_path: Path, name: str, value: Any, written: float | None
) -> None:
    source = write_checkpoint(tmp_path / "model", BY_NAME["gqa"])
    (source / "generation_config.json").write_text(json.dumps({name: value}))
    for vocab_only in (False, True):
        if vocab_only:
            byte_level("gpt-2").save(str(source / "tokenizer.json"))
            (source / "config.json").write_text(json.dumps(BY_NAME["gqa"].full_config() | {"vocab_size": 0}))
        options = ConvertOptions(outfile=str(tmp_path / "x.gguf"), vocab_only=vocab_only, force=True)
        plan = plan_conversion(source, options)
        noted = [note for note in plan.notes if note.startswith(f"generation_config.json: {name} is ")]
        assert len(noted) == (written is None and value is not None)
        plan.run()
        with GGUFFile.open(tmp_path / "x.gguf") as file:
            found = [file.metadata[key] for key in file.metadata if key.startswith("general.sampling.")]
        assert found == ([] if written is None else [pytest.approx(written)])
        assert [type(item) for item in found] == ([] if written is None else [type(written)])
