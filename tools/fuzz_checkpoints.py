"""The targets of `fuzz_targets.py` that `convert` reads: checkpoints, their tokenizers, adapters."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoint_build import safetensors_bytes, safetensors_header, write_index, write_safetensors
from convert_models import BY_NAME, weights, write_checkpoint
from fuzz_mutations import mutate_bytes, mutate_json
from test_convert_formats_meta import PARAMS, whole_model
from test_convert_lora import adapter_tensors, write_adapter
from tiny_model import PIECES, vocabulary
from torch_build import write_torch, write_zip

from pyllamacpu.convert.conversion import ConvertOptions
from pyllamacpu.convert.sources import plan_conversion
from pyllamacpu.convert.tokenizers.vocabulary import read_vocabulary
from pyllamacpu.text.load import load_tokenizer

Attempt = Callable[[random.Random], None]
TEXT = "hello the world é日 <s> <|x|>"


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _convert(source: Path, **more: Any) -> None:
    """All but the writing."""
    plan_conversion(source, ConvertOptions(outfile=str(source.parent / "out.gguf"), **more))


def _config(folder: Path) -> Attempt:
    sources = [BY_NAME[name] for name in ("gqa", "old_yarn", "new_llama3", "window", "old_linear", "tied")]
    for model in sources:
        write_checkpoint(folder / model.name, model)

    def attempt(rng: random.Random) -> None:
        model = rng.choice(sources)
        methods = ("gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors", "mlx")
        method = {"quant_method": rng.choice(methods), "bits": 4, "group_size": 32, "sym": True}
        quantized = rng.choice(({}, {"quantization_config": method}, {"quantization": method}))
        values = model.full_config() | quantized
        write_json(folder / model.name / "config.json", mutate_json(values, rng))
        _convert(folder / model.name)

    return attempt


def _tokenizer_json(folder: Path) -> Attempt:
    """Byte-level and byte-fallback BPE, with the files beside them."""
    seeds = [_byte_level(), _byte_fallback()]
    beside = {
        "tokenizer_config.json": {
            "bos_token": "<s>",
            "eos_token": {"content": "</s>"},
            "add_bos_token": True,
            "chat_template": "{{ 1 }}",
            "added_tokens_decoder": {"1": {"content": "<s>", "special": True}},
        },
        "special_tokens_map.json": {"bos_token": {"content": "<s>"}, "unk_token": "<unk>"},
        "generation_config.json": {"eos_token_id": [1, 2], "bos_token_id": 1},
        "added_tokens.json": {"<x>": 300},
    }

    def attempt(rng: random.Random) -> None:
        files = {"tokenizer.json": rng.choice(seeds), **beside}
        changed = rng.choice(["tokenizer.json", "tokenizer.json", *beside])
        files[changed] = mutate_json(files[changed], rng)
        for name, value in files.items():
            write_json(folder / name, value)
        _read_tokenizer(folder, rng)

    return attempt


def _read_tokenizer(folder: Path, rng: random.Random) -> None:
    vocabulary = read_vocabulary(folder, {"eos_token_id": 2}, rng.choice((0, 400)))
    tokenizer = load_tokenizer({key.name: key.value for key in vocabulary.keys})
    if tokenizer is not None:
        tokenizer.decode(tokenizer.encode(TEXT, parse_special=True))


def _byte_level() -> dict[str, Any]:
    from pyllamacpu.text.bpe import BYTE_LETTERS

    pieces = [*BYTE_LETTERS, "he", "ll", "hell"]
    return {
        "version": "1.0",
        "added_tokens": [{"id": 259, "content": "<s>", "special": True}, {"id": 260, "content": "<x>"}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [259], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE",
            "ignore_merges": False,
            "merges": ["h e", ["l", "l"], "he ll"],
            "vocab": {piece: i for i, piece in enumerate(pieces)},
        },
    }


def _byte_fallback() -> dict[str, Any]:
    return {
        "added_tokens": [{"id": i, "content": PIECES[i], "special": True} for i in range(3)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "unk_token": "<unk>",
            "merges": ["▁ h", "▁h e"],
            "vocab": {piece: i for i, piece in enumerate(PIECES)},
        },
    }


def _tokenizer_model(folder: Path) -> Attempt:
    """Protos of SentencePiece and lists of tiktoken."""
    import base64

    from pyllamacpu.text.spm import model_proto

    found = vocabulary()
    pieces = [str(piece) for piece in found["tokenizer.ggml.tokens"]]
    scores, types = (found[f"tokenizer.ggml.{key}"].tolist() for key in ("scores", "token_type"))
    words = [bytes([i]) for i in range(256)] + [b"he", b"ll", b"hell"]
    seeds = [
        model_proto(pieces, scores, types, True),
        b"".join(base64.b64encode(word) + b" %d\n" % i for i, word in enumerate(words)),
    ]

    def attempt(rng: random.Random) -> None:
        (folder / "tokenizer.model").write_bytes(mutate_bytes(rng.choice(seeds), rng))
        _read_tokenizer(folder, rng)

    return attempt


def _vocab_merges(folder: Path) -> Attempt:
    """vocab.json and merges.txt without tokenizer.json."""
    model = _byte_level()["model"]
    merges = b"#version: 0.2\nh e\nl l\nhe ll\n"
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "add_prefix_space": False}

    def attempt(rng: random.Random) -> None:
        vocab, changed = model["vocab"], rng.randrange(3)
        write_json(folder / "vocab.json", mutate_json(vocab, rng) if changed == 0 else vocab)
        (folder / "merges.txt").write_bytes(mutate_bytes(merges, rng) if changed == 1 else merges)
        write_json(folder / "tokenizer_config.json", mutate_json(config, rng) if changed == 2 else config)
        _read_tokenizer(folder, rng)

    return attempt


def _index(folder: Path) -> Attempt:
    source = write_checkpoint(folder / "model", BY_NAME["gqa"])
    (source / "model.safetensors").unlink()
    tensors = weights(BY_NAME["gqa"])
    names = list(tensors)
    parts = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    for part, inside in parts.items():
        write_safetensors(source / part, {name: tensors[name] for name in inside})
    path = source / "model.safetensors.index.json"
    write_index(path, {name: part for part, inside in parts.items() for name in inside})
    seed = json.loads(path.read_text())

    def attempt(rng: random.Random) -> None:
        write_json(path, mutate_json(seed, rng))
        _convert(source)

    return attempt


def _safetensors(folder: Path) -> Attempt:
    source = write_checkpoint(folder / "model", BY_NAME["gqa"])
    tensors = weights(BY_NAME["gqa"])
    header, data = safetensors_header(tensors, {}), b"".join(array.tobytes() for array in tensors.values())
    header["__metadata__"] = {"format": "pt"}
    whole = safetensors_bytes(header, data)
    text = 8 + int.from_bytes(whole[:8], "little")

    def attempt(rng: random.Random) -> None:
        if rng.random() < 0.5:
            content = safetensors_bytes(mutate_json(header, rng), data)
        else:
            content = mutate_bytes(whole[:text], rng) + whole[text:]
        (source / "model.safetensors").write_bytes(content)
        _convert(source)

    return attempt


def _torch(folder: Path) -> Attempt:
    import zipfile

    source = write_checkpoint(folder / "model", BY_NAME["gqa"])
    (source / "model.safetensors").unlink()
    path = write_torch(source / "pytorch_model.bin", weights(BY_NAME["gqa"]))
    with zipfile.ZipFile(path) as archive:
        program = archive.read("archive/data.pkl")
        names = [name for name in archive.namelist() if name.startswith("archive/data/")]
        data = {name.rsplit("/")[-1]: archive.read(name) for name in names}
    whole = path.read_bytes()

    def attempt(rng: random.Random) -> None:
        if rng.random() < 0.8:
            write_zip(path, mutate_bytes(program, rng), data)
        else:
            path.write_bytes(mutate_bytes(whole, rng))
        _convert(source)

    return attempt


def _params(folder: Path) -> Attempt:
    write_torch(folder / "consolidated.00.pth", whole_model())

    def attempt(rng: random.Random) -> None:
        write_json(folder / "params.json", mutate_json(PARAMS, rng))
        _convert(folder)

    return attempt


def _adapter(folder: Path) -> Attempt:
    base = write_checkpoint(folder / "base", BY_NAME["biases"])
    source = write_adapter(folder / "adapter", adapter_tensors())
    config = json.loads((source / "adapter_config.json").read_text())

    def attempt(rng: random.Random) -> None:
        write_json(source / "adapter_config.json", mutate_json(config, rng))
        _convert(source, base=base)

    return attempt


CHECKPOINT_TARGETS: dict[str, Callable[[Path], Attempt]] = {
    "config": _config,
    "tokenizer_json": _tokenizer_json,
    "tokenizer_model": _tokenizer_model,
    "vocab_merges": _vocab_merges,
    "index": _index,
    "safetensors": _safetensors,
    "torch": _torch,
    "params": _params,
    "adapter": _adapter,
}
