"""Names that people know (store/catalogue.py), through `resolve_model`."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_build import cache_file

from pyllamacpu.errors import StoreError
from pyllamacpu.store import resolve
from pyllamacpu.store.catalogue import CatalogueEntry, catalogue, find, near_names
from pyllamacpu.store.hub import HubRef, parse_hub_ref
from pyllamacpu.store.paths import models_dir
from pyllamacpu.store.resolve import resolve_model
from pyllamacpu.store.starter import STARTER

pytestmark = pytest.mark.usefixtures("home")

L1 = "bartowski/Llama-3.2-1B-Instruct-GGUF"
L3 = "bartowski/Llama-3.2-3B-Instruct-GGUF"
L8 = "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF"


@pytest.mark.parametrize(
    ("name", "repo", "quant"),
    [
        ("llama3.2", L3, "Q4_K_M"),
        ("llama3.2:latest", L3, "Q4_K_M"),
        ("llama3.2:1b", L1, "Q4_K_M"),
        ("Llama-3.2:1B", L1, "Q4_K_M"),
        ("llama3.2:1b-instruct", L1, "Q4_K_M"),
        ("llama3.2:1b-instruct-q4_K_M", L1, "Q4_K_M"),
        ("llama3.2:1b-instruct-fp16", L1, "F16"),
        ("llama3.2:q8_0", L3, "Q8_0"),
        ("llama3.1:8b-q8_0", L8, "Q8_0"),
        ("llama3.1:8b-iq4_xs", L8, "IQ4_XS"),
        ("llama4:scout", "unsloth/Llama-4-Scout-17B-16E-Instruct-GGUF", "Q4_K_M"),
        ("smollm2:360m", "bartowski/SmolLM2-360M-Instruct-GGUF", "Q4_K_M"),
    ],
)
def test_names_that_people_know(name: str, repo: str, quant: str) -> None:
    entry = find(name)
    assert entry is not None and (entry.repo, entry.quant) == (repo, quant)


def test_unknown_names_and_tags() -> None:
    assert find("llama9") is None and find("") is None and find("model.gguf") is None
    with pytest.raises(StoreError, match=r"llama3.2 has no tag 7b; there is llama3.2:3b, llama3.2:1b"):
        find("llama3.2:7b")
    with pytest.raises(StoreError, match="has no tag 8b-base"):
        find("llama3.1:8b-base")


def test_every_row_is_a_model_on_the_hub_and_is_named_once() -> None:
    names = [entry.full_name for entry in catalogue()]
    assert len(names) == len(set(names)) > 20
    for entry in catalogue():
        assert parse_hub_ref(f"hf.co/{entry.repo}:{entry.quant}") == HubRef(entry.repo, quant=entry.quant)
        assert find(entry.full_name) == entry and find(entry.name) in catalogue()


def test_what_exists_is_said() -> None:
    assert "llama3 (8b, 70b)" in near_names("llama9") and near_names("qqqq") == []
    with pytest.raises(StoreError) as caught:
        resolve_model("llama9")
    text = str(caught.value)
    assert text.startswith("llama9: no such model; did you mean ") and "llama4 (scout, maverick)" in text


def test_a_known_name_is_taken_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = cache_file(L1, "Llama-3.2-1B-Instruct-Q4_K_M.gguf")
    assert resolve_model("llama3.2:1b") == path
    with pytest.raises(StoreError, match=r"Llama-3.2-1B-Instruct-GGUF:Q8_0 is not in the cache"):
        resolve_model("llama3.2:1b-q8_0")


def test_a_stored_file_comes_before_a_known_name_only_with_its_whole_name() -> None:
    models_dir().mkdir(parents=True)
    exact, longer = models_dir() / "llama3.1.gguf", models_dir() / "llama3.2-mine.gguf"
    exact.write_bytes(b"GGUF"), longer.write_bytes(b"GGUF")
    path = cache_file(L3, "Llama-3.2-3B-Instruct-Q4_K_M.gguf")
    assert resolve_model("llama3.1") == exact
    assert resolve_model("llama3.2") == path
    assert resolve_model("llama3.2-m") == longer


def test_the_starter_model_by_its_known_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resolve, "starter_path", lambda: tmp_path / "s")
    assert resolve_model("smollm2:135m") == tmp_path / "s"
    assert resolve.is_starter("smollm2:135m") and not resolve.is_starter("smollm2:360m")
    assert isinstance(find("smollm2:135m"), CatalogueEntry) and STARTER.filename.startswith("SmolLM2-135M")


def test_bare_names_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """user/repo[:quant], unless there is a folder of the user's name: then it is a mistyped path."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = cache_file("user/repo", "x-Q4_K_M.gguf")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("user/repo:Q4_K_M") == path == resolve_model("user/repo")
    (tmp_path / "user").mkdir()
    with pytest.raises(StoreError, match="no such file"):
        resolve_model("user/repo")
