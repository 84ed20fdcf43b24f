"""What `fuzz_readers.py` damages. A target is prepared in a folder and gives a function that makes one
damaged input from a random generator and reads it.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint_build import safetensors_bytes, safetensors_header, write_index, write_safetensors
from convert_models import BY_NAME, weights, write_checkpoint
from fuzz_mutations import NOT_FINITE, ODD_NUMBERS, ODD_VALUES, mutate_bytes, mutate_json
from test_convert_formats_meta import PARAMS, whole_model
from test_convert_lora import adapter_tensors, write_adapter
from tiny_model import PIECES, vocabulary, write_model
from torch_build import write_torch, write_zip

from pyllamacpu import Llama
from pyllamacpu.convert.conversion import ConvertOptions
from pyllamacpu.convert.sources import plan_conversion
from pyllamacpu.convert.tokenizers.vocabulary import read_vocabulary
from pyllamacpu.engine.engine import Engine
from pyllamacpu.errors import OptionError
from pyllamacpu.evaluate.logits_file import LogitsFile, save_logits
from pyllamacpu.evaluate.tasks import hellaswag, multiple_choice, winogrande
from pyllamacpu.evaluate.windows import windows
from pyllamacpu.gguf import GGUFFile
from pyllamacpu.quantize.file_types import parse_file_type
from pyllamacpu.quantize.imatrix import Imatrix, ImatrixEntry, read_imatrix, write_imatrix
from pyllamacpu.quantize.plan import Settings, make_plan
from pyllamacpu.text.load import load_tokenizer

Attempt = Callable[[random.Random], None]
TEXT = "hello the world é日 <s> <|x|>"


def _convert(source: Path, **more: Any) -> None:
    """All but the writing."""
    plan_conversion(source, ConvertOptions(outfile=str(source.parent / "out.gguf"), **more))


# GGUF


def _gguf_values(folder: Path) -> Attempt:
    """Odd values for the metadata of a sound model, which is then used for whatever reads metadata."""
    path = folder / "model.gguf"
    with GGUFFile.open(write_model(path)) as file:
        keys = [*file.metadata, *MORE_KEYS]

    def attempt(rng: random.Random) -> None:
        changes = {key.replace(".", "__"): _gguf_value(rng) for key in rng.sample(keys, rng.randint(1, 3))}
        _write_model(path, changes)
        with GGUFFile.open(path) as file:
            _look_at(file)
        with Llama(str(path), n_ctx=64, n_threads=1) as llm:
            if llm.text_tokenizer is not None:
                llm.create_chat_completion([{"role": "user", "content": TEXT}], max_tokens=2)
                llm.detokenize(llm.tokenize(TEXT.encode()))

    return attempt


_LLAMA = """
    rope.freq_base rope.dimension_count rope.scaling.type rope.scaling.factor
    rope.scaling.original_context_length rope.scaling.yarn_beta_fast attention.key_length
    rope.scaling.yarn_ext_factor rope.scaling.yarn_attn_factor rope.scaling.attn_factor
    rope.scaling.yarn_beta_slow rope.scaling.yarn_log_multiplier attention.scale
    attention.sliding_window attention.value_length expert_count vocab_size expert_used_count
"""
_TOKENIZER = """
    pre merges add_bos_token add_eos_token add_space_prefix eot_token_id unknown_token_id
    fim_pre_token_id remove_extra_whitespaces precompiled_charsmap
"""
MORE_KEYS = (
    *(f"llama.{key}" for key in _LLAMA.split()),
    *(f"tokenizer.ggml.{key}" for key in _TOKENIZER.split()),
    *("tokenizer.chat_template.tool_use", "general.file_type", "general.alignment", "general.type"),
    *("split.count", "split.no"),
)


def _gguf_value(rng: random.Random) -> Any:
    while True:
        value = rng.choice((*ODD_VALUES, *ODD_NUMBERS, *NOT_FINITE, "yarn", "linear", "gpt2", "none"))
        if value is None or isinstance(value, (bool, float)):
            return value
        if isinstance(value, int):
            return value if -(1 << 63) <= value < 1 << 64 else rng.randrange(1 << 32)
        if isinstance(value, str):
            return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        if isinstance(value, list) and len({type(item) for item in value} & {str, int}) == 1:
            return value


def _write_model(path: Path, changes: dict[str, Any]) -> None:
    write_model(path, **changes)


def _look_at(file: GGUFFile) -> None:
    from pyllamacpu.cli.show import _everything, _plan, _text
    from pyllamacpu.errors import PyllamacpuError

    try:
        json.dumps(_everything(file, False, "f16", "f16"))
        for key in file.metadata:
            _text(file.metadata[key], False)
        make_plan(file, Settings(parse_file_type("Q4_0")))
        _plan(file)
    except PyllamacpuError:
        pass


# Checkpoints


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
        _write_json(folder / model.name / "config.json", mutate_json(values, rng))
        _convert(folder / model.name)

    return attempt


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


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
            _write_json(folder / name, value)
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
        _write_json(folder / "vocab.json", mutate_json(vocab, rng) if changed == 0 else vocab)
        (folder / "merges.txt").write_bytes(mutate_bytes(merges, rng) if changed == 1 else merges)
        _write_json(folder / "tokenizer_config.json", mutate_json(config, rng) if changed == 2 else config)
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
        _write_json(path, mutate_json(seed, rng))
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
        _write_json(folder / "params.json", mutate_json(PARAMS, rng))
        _convert(folder)

    return attempt


def _adapter(folder: Path) -> Attempt:
    base = write_checkpoint(folder / "base", BY_NAME["biases"])
    source = write_adapter(folder / "adapter", adapter_tensors())
    config = json.loads((source / "adapter_config.json").read_text())

    def attempt(rng: random.Random) -> None:
        _write_json(source / "adapter_config.json", mutate_json(config, rng))
        _convert(source, base=base)

    return attempt


# Files of measurements


def _engine(folder: Path) -> Engine:
    return Engine.open(write_model(folder / "model.gguf"), n_ctx=64, n_batch=64, n_threads=1)


def _logits(folder: Path) -> Attempt:
    engine, path = _engine(folder), folder / "logits"
    cut = windows(np.arange(1, 130) % 200, 16, bos=1, n_chunks=3)
    save_logits(path, engine, cut)
    whole = path.read_bytes()

    def attempt(rng: random.Random) -> None:
        head = 20 + 4 * 16 * 3  # the tokens are where it matters
        start = head if rng.random() < 0.7 else len(whole)
        path.write_bytes(mutate_bytes(whole[:start], rng) + whole[start:])
        LogitsFile.open(path).divergence(engine, 1)

    return attempt


def _imatrix(folder: Path) -> Attempt:
    model = write_model(folder / "model.gguf")
    with GGUFFile.open(model) as file:
        entries = {
            name: ImatrixEntry(np.ones((1, info.shape[-1]), np.float32), np.array([4]))
            for name, info in file.tensors.items()
            if name.startswith("blk.") and len(info.shape) == 2
        }
    for name in ("i.gguf", "i.dat"):
        write_imatrix(folder / name, Imatrix(entries, ("text",), 4, 64), legacy=name == "i.dat")
    seeds = {name: (folder / name).read_bytes() for name in ("i.gguf", "i.dat")}

    def attempt(rng: random.Random) -> None:
        name = rng.choice(list(seeds))
        (folder / name).write_bytes(mutate_bytes(seeds[name], rng))
        matrix = read_imatrix(folder / name)
        with GGUFFile.open(model) as file:
            plan = make_plan(file, Settings(parse_file_type("Q4_0"), imatrix=matrix, imatrix_name=name))
            for tensor in plan.tensors:
                plan.importance(tensor)

    return attempt


def _tasks(folder: Path) -> Attempt:
    engine = _engine(folder)
    tokenizer = load_tokenizer(engine.file.metadata)
    assert tokenizer is not None
    texts = {
        "hellaswag": b"the hello\n2\nworld\na the\nhello a\nthe the\n" * 3,
        "winogrande": b"0,the _ is hello to the world.,hello,world,2\nindex,no\n" * 3,
        "multiple_choice": _choices(),
    }
    readers: dict[str, Any] = {
        "hellaswag": hellaswag,
        "winogrande": winogrande,
        "multiple_choice": multiple_choice,
    }

    def attempt(rng: random.Random) -> None:
        name = rng.choice(list(texts))
        readers[name](mutate_bytes(texts[name], rng), tokenizer, rng.choice((0, 2)), "tasks")

    return attempt


def _choices() -> bytes:
    import struct

    def text(words: str) -> bytes:
        return struct.pack("<I", len(words)) + words.encode()

    answers = struct.pack("<I", 2) + text("the") + text("world") + struct.pack("<2i", 1, 0)
    task = text("hello") + answers + struct.pack("<I", 0)
    return struct.pack("<2I", 2, 0) + task * 2


# Saved sessions


def _state(folder: Path) -> Attempt:
    """`LlamaState`: its bytes damaged, its fields of other types."""
    llm = Llama(str(write_model(folder / "model.gguf")), n_ctx=64, n_threads=1, logits_all=True)
    llm.eval([1, 70, 80, 90])
    llm.sample(temp=0.7)
    sound = llm.save_state()
    fields = [field.name for field in dataclasses.fields(sound)]

    def attempt(rng: random.Random) -> None:
        if rng.random() < 0.3:
            state: Any = dataclasses.replace(sound, llama_state=mutate_bytes(sound.llama_state, rng))
        elif rng.random() < 0.1:
            state = rng.choice((*ODD_VALUES, b"bytes"))
        else:
            state = dataclasses.replace(sound, **{rng.choice(fields): _odd_value(rng)})
            state = pickle.loads(pickle.dumps(state))
        try:
            llm.load_state(state)
            llm.eval([70])
            llm.sample()
        finally:  # a state that is refused leaves an object that can be used
            llm.load_state(sound)
            llm.eval([70])

    return attempt


def _odd_value(rng: random.Random) -> Any:
    arrays = (np.zeros(3, np.float32), np.zeros((2, 2)), np.array(["a"]), np.array(1.0), np.full(300, np.nan))
    tuples = ((), (1, 2), (1, 70, 80, -5), (1, 70, 80, 10**9))
    return rng.choice((*ODD_VALUES, *arrays, *tuples, b"", b"x" * 40, complex(1)))


def _saved_chat(folder: Path) -> Attempt:
    from pyllamacpu.cli.session import ChatSession
    from pyllamacpu.sampling.options import SamplingOptions

    roles = ("system", "user", "assistant", "user", "assistant")
    seed = {"messages": [{"role": role, "content": "Hello"} for role in roles]}
    path = folder / "chat.json"
    session = ChatSession(None, SamplingOptions())  # type: ignore[arg-type]

    def attempt(rng: random.Random) -> None:
        if rng.random() < 0.7:
            _write_json(path, mutate_json(seed, rng))
        else:
            path.write_bytes(mutate_bytes(json.dumps(seed).encode(), rng))
        session.load(path)
        session.save(path)

    return attempt


def _options(folder: Path) -> Attempt:
    """The numbers that Python code gives when a model is opened, and for a call."""
    path = str(write_model(folder / "model.gguf"))
    names = ("rope_freq_base", "rope_freq_scale", "n_ctx", "n_batch", "n_ubatch", "seed")

    def attempt(rng: random.Random) -> None:
        given = {name: rng.choice((*ODD_NUMBERS, *NOT_FINITE)) for name in rng.sample(names, 2)}
        if isinstance(given.get("n_ctx"), int) and given["n_ctx"] > 1 << 20:
            given["n_ctx"] = 64
        try:
            with Llama(path, n_threads=1, **given) as llm:
                llm.create_completion("hello", max_tokens=2)
        except TypeError as error:
            raise OptionError(str(error)) from error  # Python's own for a wrong type

    return attempt


TARGETS: dict[str, Callable[[Path], Attempt]] = {
    "gguf_values": _gguf_values,
    "config": _config,
    "tokenizer_json": _tokenizer_json,
    "tokenizer_model": _tokenizer_model,
    "vocab_merges": _vocab_merges,
    "index": _index,
    "safetensors": _safetensors,
    "torch": _torch,
    "params": _params,
    "adapter": _adapter,
    "logits": _logits,
    "imatrix": _imatrix,
    "tasks": _tasks,
    "state": _state,
    "saved_chat": _saved_chat,
    "options": _options,
}
