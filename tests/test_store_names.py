"""The model store's names: of files, models, quantizations and parts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from store_build import cache_file

from pyllamacpu.errors import StoreError
from pyllamacpu.store import resolve
from pyllamacpu.store.paths import models_dir
from pyllamacpu.store.quants import choose_file, part_names, quant_of
from pyllamacpu.store.resolve import list_models, resolve_model
from pyllamacpu.store.starter import STARTER

pytestmark = pytest.mark.usefixtures("home")


def store_file(name: str, content: bytes = b"GGUF") -> Path:
    path = models_dir() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_paths_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own model.gguf"
    own.write_bytes(b"GGUF")
    first, second = store_file("Alpha-7B.Q4_K_M.gguf"), store_file("Alpha-8B.Q4_K_M.gguf")
    third = store_file("sub/Beta.gguf")
    assert resolve_model(str(own)) == own
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/own model.gguf") == own
    for name in ("Alpha-7B.Q4_K_M.gguf", "alpha-7b.q4_k_m", "ALPHA-7", "alpha-7b"):
        assert resolve_model(name) == first
    assert resolve_model("alpha-8") == second
    assert resolve_model("sub/beta") == third
    with pytest.raises(StoreError, match=r"several models: Alpha-7B.Q4_K_M, Alpha-8B.Q4_K_M"):
        resolve_model("alpha")


def test_a_whole_name_wins_over_longer_ones() -> None:
    short = store_file("Gamma.gguf")
    store_file("Gamma-large.gguf")
    assert resolve_model("gamma") == short


@pytest.mark.skipif(sys.platform == "darwin", reason="needs files whose names differ in case only")
def test_a_file_s_exact_name_wins_over_names_that_differ_in_case() -> None:
    for name in ("Up.gguf", "up.GGUF"):
        store_file(name)
    for name, file in (("Up.gguf", "Up.gguf"), ("up.GGUF", "up.GGUF"), ("up", "up.GGUF")):
        assert resolve_model(name) == models_dir() / file
    with pytest.raises(StoreError, match="several"):
        resolve_model("UP.gguf")


@pytest.mark.skipif(sys.platform == "darwin", reason="needs files whose names differ in case only")
def test_files_whose_suffixes_differ_in_case_do_not_hide_one_another() -> None:
    files = [store_file(name) for name in ("Up.gguf", "Up.GGUF", "Up.Gguf", "sub/Down.GGUF")]
    names = [model.name for model in list_models()]
    assert sorted(names) == ["Up", "Up.GGUF", "Up.Gguf", "sub/Down"]
    assert sorted(resolve_model(name) for name in names) == sorted(files)
    assert resolve_model("Up.gguf") == resolve_model("up.gguf") == files[0]
    assert resolve_model("sub/Down.gguf") == files[3]
    files[0].unlink()
    with pytest.raises(StoreError, match=r"several models: Up.GGUF, Up.Gguf"):
        resolve_model("up")
    files[2].unlink()
    assert [model.name for model in list_models()] == ["sub/Down", "Up"]


def test_links_that_lead_nowhere_are_told_and_not_offered(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").symlink_to("gone.gguf")
    with pytest.raises(StoreError, match=r"model.gguf: a symbolic link to gone.gguf, which is not there"):
        resolve_model(str(tmp_path / "model.gguf"))
    (tmp_path / "folder-model.gguf").mkdir()
    (tmp_path / "my-model.gguf").touch()
    with pytest.raises(StoreError, match=r"no such file; did you mean [^ ]*/my-model.gguf\?$"):
        resolve_model(str(tmp_path / "modell.gguf"))


def test_a_directory_of_the_same_name_does_not_hide_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = store_file("Delta.gguf")
    (tmp_path / "Delta").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_model("Delta") == stored


@pytest.mark.parametrize(
    "name, says",
    [
        ("Alhpa-7B", "did you mean Alpha-7B.Q4_K_M"),
        ("llama-guard", "pyllamacpu list"),
        ("meta-llama/Llama-3.2-1B", "hf.co/meta-llama/Llama-3.2-1B is not in the cache"),
        ("https://me:pass@example.com/m.gguf?token=hf_abcdef", "https://example.com/m.gguf: only"),
        ("https://example.com/model.gguf", "download the file"),
        ("hf.co/nobody", "hf.co/user/repo"),
        ("hf.co/user/repo/readme.md", "not a GGUF file"),
        ("hf.co/user/repo/resolve/main/../../x.gguf", "not a GGUF file"),
        ("", "empty"),
        ("  ", "empty"),
        ("nul\0byte", "no such"),
        ("x" * 5000, "no such"),
        ("./missing.gguf", "no such file"),
    ],
)
def test_unknown_names_say_what_to_do(name: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    store_file("Alpha-7B.Q4_K_M.gguf")
    with pytest.raises(StoreError) as caught:
        resolve_model(name)
    assert says in str(caught.value)


def test_mistyped_path_and_directory(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "llama.gguf").write_bytes(b"GGUF")
    with pytest.raises(StoreError, match=r"did you mean .*models/llama\.gguf"):
        resolve_model(str(tmp_path / "models" / "lama.gguf"))
    with pytest.raises(StoreError, match=r"is a directory; give one of its files: llama\.gguf"):
        resolve_model(str(tmp_path / "models"))


def test_starter_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetched: list[int] = []
    monkeypatch.setattr(resolve, "starter_path", lambda: (fetched.append(1), tmp_path / "s")[1])
    assert resolve_model(None) == tmp_path / "s"
    assert resolve_model("smollm2") == tmp_path / "s"
    assert resolve_model(STARTER.filename) == tmp_path / "s"
    assert len(fetched) == 3
    assert resolve.is_starter(None) and resolve.is_starter("SMOLLM2-135m") and not resolve.is_starter("smol")
    with pytest.raises(StoreError, match="SmolLM2"):
        resolve_model("smol")  # too short to begin a download
    with pytest.raises(StoreError, match="SmolLM2"):
        resolve_model("smolm2")


def test_list_names_resolve_to_their_files() -> None:
    store_file("Alpha-7B.Q4_K_M.gguf", b"12345")
    store_file("big-00001-of-00002.gguf", b"123")
    store_file("big-00002-of-00002.gguf", b"4567")
    store_file("broken-00001-of-00002.gguf")
    store_file(".hidden.gguf")
    cache_file("user/repo", "x-Q8_0.gguf", b"123456")
    cache_file("user/repo", "sub/y-00001-of-00002.gguf")
    models = {model.name: model for model in list_models()}
    assert {name: model.size for name, model in models.items()} == {
        "Alpha-7B.Q4_K_M": 5,
        "big-00001-of-00002": 7,
        "hf.co/user/repo/x-Q8_0.gguf": 6,
    }
    for model in models.values():
        assert resolve_model(model.name) == model.path


# Quantizations


@pytest.mark.parametrize(
    "name, quant",
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("model.IQ2_XXS.gguf", "IQ2_XXS"),
        ("model-UD-Q4_K_XL-00001-of-00003.gguf", "UD-Q4_K_XL"),
        ("BF16/model-BF16-00001-of-00002.gguf", "BF16"),
        ("model-f16.gguf", "F16"),
        ("model-q8_0.gguf", "Q8_0"),
        ("tq1_0/x-TQ1_0.gguf", "TQ1_0"),
        ("model.gguf", None),
        ("Q4ever.gguf", None),
    ],
)
def test_quant_of(name: str, quant: str | None) -> None:
    assert quant_of(name) == quant


FILES = [
    "README.md",
    "mmproj-model-f16.gguf",
    "m-Q8_0.gguf",
    "m-Q4_K_M.gguf",
    "m-Q4_K_S.gguf",
    "UD/m-UD-Q4_K_XL-00001-of-00002.gguf",
    "UD/m-UD-Q4_K_XL-00002-of-00002.gguf",
    "m-IQ4_XS.gguf",
]


def test_choose_file() -> None:
    assert choose_file(FILES, None, "here") == "m-Q4_K_M.gguf"
    assert choose_file(FILES, "q8_0", "here") == "m-Q8_0.gguf"
    assert choose_file(FILES, "UD-Q4_K_XL", "here") == "UD/m-UD-Q4_K_XL-00001-of-00002.gguf"
    assert choose_file(FILES, "q4_k_xl", "here") == "UD/m-UD-Q4_K_XL-00001-of-00002.gguf"
    assert choose_file(FILES, "m-IQ4_XS.gguf", "here") == "m-IQ4_XS.gguf"
    assert choose_file(["a-F32.gguf", "a-Q8_0.gguf", "a-Q2_K.gguf"], None, "here") == "a-Q8_0.gguf"
    assert choose_file(["bb.gguf", "a.gguf"], None, "here") == "a.gguf"
    with pytest.raises(StoreError, match=r"here has no Q5_K_M; it has IQ4_XS, Q4_K_M"):
        choose_file(FILES, "Q5_K_M", "here")
    with pytest.raises(StoreError, match="no GGUF model"):
        choose_file(["README.md", "mmproj-f16.gguf"], None, "here")


def test_part_names() -> None:
    assert part_names("d/x-00002-of-00003.gguf") == [f"d/x-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert part_names("x.gguf") == ["x.gguf"]
    assert part_names("x-00001-of-00001.gguf") == ["x-00001-of-00001.gguf"]
