"""Converted files of the tiny Llama 3.2 Vision models, and files as both generations of ollama have them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from mllama_models import TEXT, save_hf

from pyllamacpu import Llama
from pyllamacpu.convert.conversion import ConvertOptions
from pyllamacpu.convert.sources import plan_conversion
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.gguf.writer import GGUFWriter
from pyllamacpu.model.dequantize import dequantize

Values = dict[str, npt.NDArray[np.float32]]
FIXTURE = Path(__file__).parent / "fixtures" / "mllama.npz"
_OURS = ("mllama.attention.cross_attention_permuted", "mllama.image_token_id")
_OLDER = {".attn_norm.": ".ln1.", ".ffn_norm.": ".ln2.", ".attn_output.": ".attn_out."}


def expected() -> Values:
    with np.load(FIXTURE) as data:
        return {name: data[name] for name in data.files if name != "made_by"}


def difference(found: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> float:
    """The largest, as a part of the spread."""
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / wanted.std())


def converted(folder: Path, outtype: str = "f32", mmproj: bool = False) -> Path:
    source, path = folder / "hf", folder / f"{'mmproj-' if mmproj else ''}tiny-{outtype}.gguf"
    if not source.exists():
        save_hf(source)
    plan_conversion(source, ConvertOptions(outfile=str(path), outtype=outtype, mmproj=mmproj)).run()
    return path


def opened(path: Path, **options: object) -> Llama:
    usual = {"n_ctx": 256, "n_batch": 64, "n_threads": 2, "type_k": "f32", "type_v": "f32", "verbose": False}
    return Llama(str(path), **usual | options)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def mllama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(tmp_path_factory.mktemp("mllama"))


@pytest.fixture(scope="session")
def llm(mllama: Path) -> Iterator[Llama]:
    with opened(mllama) as model:
        yield model


# ---- ollama's ----


def ollama_newer(path: Path, target: Path) -> Path:
    """One file, in which rows of q and k of all layers have the order of rotated ones."""
    values = _values(path)
    heads = TEXT["num_attention_heads"], TEXT["num_key_value_heads"]
    for name, value in values.items():
        for part, n in zip(("q", "k"), heads, strict=True):
            if name.endswith(f"cross_attn_{part}_proj.weight"):
                halves = value.reshape(n, 2, -1, value.shape[1])
                values[name] = halves.swapaxes(1, 2).reshape(value.shape)
    return _write(target, path, values)


def ollama_older(path: Path, text: Path, tower: Path) -> tuple[Path, Path]:
    """Two files; in the tower's the names of layers are others, and those of its products are exchanged."""
    values = _values(path)
    own = {name: value for name, value in values.items() if not name.startswith(("v.", "mm."))}
    _write(text, path, own, without="mllama.vision.")
    renamed: Values = {}
    for name, value in values.items():
        if name in own:
            continue
        if "blk." in name:
            for ours, theirs in _OLDER.items():
                name = name.replace(ours, theirs)
            name = name.replace("ffn_up.", "ffn_first.").replace("ffn_down.", "ffn_up.")
            name = name.replace("ffn_first.", "ffn_down.")
        renamed[name] = value
    return text, _write(tower, path, renamed, only="mllama.vision.")


def _values(path: Path) -> Values:
    file = GGUFFile.open(path)
    found = {n: dequantize(file.data(n), i.type, tuple(i.shape)) for n, i in file.tensors.items()}
    file.close()
    return found


def _write(target: Path, like: Path, values: Values, without: str = "?", only: str = "mllama.") -> Path:
    file = GGUFFile.open(like)
    skip = {*_OURS, *(key for key in file.metadata if key.startswith(without))}
    skip |= {key for key in file.metadata if key.startswith("mllama.") and not key.startswith(only)}
    with GGUFWriter(target) as writer:
        writer.copy_metadata(file.metadata, skip)
        for name, value in values.items():
            writer.add_array(name, value)
    file.close()
    return target


# ---- with words ----

SPECIAL = ("<unk>", "<s>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>")
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<|image|>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def with_words(path: Path, target: Path, template: str = CHAT) -> Path:
    """The model with letters, and what a guard answers, for tokens."""
    printable = [chr(i) for i in range(32, 127)]
    tokens = [*SPECIAL, "safe", "unsafe", "\n", "\n\n", *(letter.replace(" ", "▁") for letter in printable)]
    tokens += [f"<{i}>" for i in range(len(tokens), TEXT["vocab_size"])]
    tokens += ["<|image|>", *(f"<extra{i}>" for i in range(7))]
    values = _values(path)
    file = GGUFFile.open(path)
    n = len(tokens)
    kinds = np.array([3 if len(t) > 1 and t.startswith("<") else 1 for t in tokens], np.int32)
    scores = np.array([-i / 100 for i in range(n)], np.float32)
    tokenizer = {"model": "llama", "tokens": tokens, "scores": scores, "token_type": kinds}
    numbers = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    with GGUFWriter(target) as writer:
        writer.copy_metadata(file.metadata, skip=["tokenizer.ggml.model"])
        for name, value in {**tokenizer, **numbers, "add_space_prefix": False}.items():
            writer.add(f"tokenizer.ggml.{name}", value)
        writer.add("tokenizer.chat_template", template)
        for name, value in values.items():
            writer.add_array(name, value)
    file.close()
    return target
