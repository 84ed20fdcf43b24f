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
from fuzz_checkpoints import CHECKPOINT_TARGETS, TEXT, Attempt, write_json
from fuzz_mutations import NOT_FINITE, ODD_NUMBERS, ODD_VALUES, mutate_bytes, mutate_json
from tiny_model import write_model

from pyllamacpu import Llama
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
    from pyllamacpu.cli.show import MemoryOptions, _everything, _plan, _text
    from pyllamacpu.errors import PyllamacpuError

    try:
        json.dumps(_everything(file, False, MemoryOptions("f16", "f16", None)))
        for key in file.metadata:
            _text(file.metadata[key], False)
        make_plan(file, Settings(parse_file_type("Q4_0")))
        _plan(file)
    except PyllamacpuError:
        pass


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
            write_json(path, mutate_json(seed, rng))
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


def _images(folder: Path) -> Attempt:
    """Image files of all formats, their bytes damaged, and data URLs; what is read must also make tiles."""
    import base64

    from image_cases import cases

    from pyllamacpu.images import picture as pictures
    from pyllamacpu.images.sources import open_picture
    from pyllamacpu.images.tiles import llama4_tiles, llama32_tiles

    seeds = [case.source for case in cases(12, 60) if isinstance(case.source, bytes)] + _lossy_images()

    def opened(rng: random.Random) -> pictures.Picture:
        data = mutate_bytes(rng.choice(seeds), rng)
        if rng.random() < 0.1:
            url = b"data:image/png;base64," + base64.b64encode(data)
            return open_picture(mutate_bytes(url, rng).decode("latin-1"))
        return open_picture(data)

    def attempt(rng: random.Random) -> None:
        usual = pictures.MAX_PIXELS
        pictures.MAX_PIXELS = 10_000_000  # more may take as much memory as a fault
        try:
            picture = opened(rng)
        finally:
            pictures.MAX_PIXELS = usual
        if picture.width * picture.height < 1_000_000:
            llama32_tiles(picture, 28)
            llama4_tiles(picture, 28)

    return attempt


def _lossy_images() -> list[bytes]:
    from io import BytesIO

    from PIL import Image

    found = []
    image = Image.radial_gradient("L").resize((40, 30)).convert("RGB")
    several = {"save_all": True, "append_images": [image]}
    for kind, options in (("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", several), ("MPO", several)):
        file = BytesIO()
        image.save(file, kind, **options)
        found.append(file.getvalue())
    file = BytesIO()
    image.convert("CMYK").save(file, "JPEG")
    return [*found, file.getvalue()]


TARGETS: dict[str, Callable[[Path], Attempt]] = {
    "gguf_values": _gguf_values,
    **CHECKPOINT_TARGETS,
    "logits": _logits,
    "imatrix": _imatrix,
    "tasks": _tasks,
    "state": _state,
    "saved_chat": _saved_chat,
    "options": _options,
    "images": _images,
}
