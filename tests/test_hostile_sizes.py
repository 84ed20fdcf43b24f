"""Small files whose work or memory could grow with the square of their size, or with a number in them.

Covers convert/tokenizers/tiktoken_file.py, convert/tokenizers/token_table.py, convert/models/fields.py.
"""

from __future__ import annotations

import base64
import json
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_models import BY_NAME, write_checkpoint
from text_oracle import fixture

from pyllamacpu.convert.conversion import ConvertOptions
from pyllamacpu.convert.formats.safetensors import read_safetensors
from pyllamacpu.convert.sources import plan_conversion
from pyllamacpu.convert.tokenizers.tiktoken_file import merges_of, read_tiktoken
from pyllamacpu.convert.tokenizers.vocabulary import read_vocabulary
from pyllamacpu.errors import CheckpointError
from pyllamacpu.text.bpe import BYTE_LETTERS
from pyllamacpu.text.chat import choose_template, encode_chat
from pyllamacpu.text.load import load_tokenizer

SECONDS, BYTES = 10.0, 64 << 20  # of CPU time, so that other work on the machine does not count


@contextmanager
def cheap(n_bytes: int = BYTES) -> Iterator[None]:
    """Fails when the block takes much CPU time or memory."""
    tracemalloc.start()
    start = time.process_time()
    try:
        yield
        seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seconds < SECONDS and peak < n_bytes, f"{seconds:.1f} s, {peak >> 20} MB"


def test_a_long_piece_of_tiktoken(tmp_path: Path) -> None:
    words = [bytes([i]) for i in range(256)] + [b"x" * 2, b"x" * 70_000, b"xy" * 30_000]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"".join(base64.b64encode(word) + b" %d\n" % i for i, word in enumerate(words)))
    with cheap():
        table = read_tiktoken(path, 0, newer=True)
    assert table.merges == ["x x"]


def test_merges_of_tokens_of_all_lengths() -> None:
    """The way that is cheap finds what the plain way finds."""
    rng = np.random.default_rng(1)
    words = {rng.integers(97, 100, rng.integers(1, 7)).astype(np.uint8).tobytes() for _ in range(300)}
    ranks = {word: i for i, word in enumerate(sorted(words, key=lambda word: (len(word), word)))}
    plain = []
    for word in ranks:
        cuts = [(word[:i], word[i:]) for i in range(1, len(word))]
        pairs = sorted((ranks[a], ranks[b], a, b) for a, b in cuts if a in ranks and b in ranks)
        plain += [f"{a.decode()} {b.decode()}" for _, _, a, b in pairs]
    assert merges_of(ranks) == plain and len(plain) > 100


def with_control_tokens(*new: str) -> dict[str, Any]:
    metadata = dict(fixture("bpe-gpt-2.json")["metadata"])
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], *new]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], *[3] * len(new)]
    return metadata


def test_a_long_control_token_in_a_chat() -> None:
    metadata = with_control_tokens("<" * 60_000, "<" * 1000, "<" * 900)
    tokenizer = load_tokenizer(metadata)
    assert tokenizer is not None
    template = choose_template(metadata, "chatml")
    with cheap():
        for text in ("hello", "<" * 30_000, "hello " * 5000):
            encode_chat(tokenizer, template, [{"role": "user", "content": text}])
            tokenizer.encode(text, parse_special=True)


def test_a_message_that_ends_like_a_control_token_begins() -> None:
    """What the prefixes were for: the template's words must not complete a token of the person's."""
    metadata = with_control_tokens("<|end|>")
    tokenizer = load_tokenizer(metadata)
    assert tokenizer is not None
    template = choose_template(metadata, "{% for m in messages %}{{ m.content }}|end|>{% endfor %}")
    token = tokenizer.token_id("<|end|>")
    for text, wanted in (("hello <", 0), ("hello ", 0), ("hello", 0)):
        assert encode_chat(tokenizer, template, [{"role": "user", "content": text}]).count(token) == wanted


LARGE = {"num_hidden_layers": 10**9, "head_dim": 10**9, "vocab_size": 10**9, "num_attention_heads": 10**9}


@pytest.mark.parametrize("key, value", [*LARGE.items(), ("num_hidden_layers", 10**5)])
def test_numbers_of_a_config(key: str, value: int, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "model", BY_NAME["new_llama3"])
    config = BY_NAME["new_llama3"].full_config() | {key: value}
    (source / "config.json").write_text(json.dumps(config))
    with cheap(), pytest.raises(CheckpointError, match=f"{key} is {value}: must be a whole number"):
        plan_conversion(source, ConvertOptions(outfile=str(tmp_path / "out.gguf")))


def tokenizer_json(vocab: dict[str, int], added: list[dict[str, Any]]) -> str:
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    decoder = {"type": "ByteLevel"}
    splitting = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    whole = {"model": model, "pre_tokenizer": splitting, "decoder": decoder, "added_tokens": added}
    return json.dumps(whole)


@pytest.mark.parametrize("where", ["vocab", "added"])
def test_a_large_token_id(where: str, tmp_path: Path) -> None:
    vocab = {piece: i for i, piece in enumerate(BYTE_LETTERS)}
    large = 10**7 if where == "vocab" else 10**8
    if where == "vocab":
        vocab["hello"] = large
    added = [{"id": large, "content": "<x>", "special": True}] if where == "added" else []
    (tmp_path / "tokenizer.json").write_text(tokenizer_json(vocab, added))
    with cheap(), pytest.raises(CheckpointError, match=f"token ids go up to {large}"):
        read_vocabulary(tmp_path, {}, 0)
    with cheap(), pytest.raises(CheckpointError, match="token ids go up to"):
        read_vocabulary(tmp_path, {}, large + 1)  # as an odd config would have it


def test_names_that_occur_twice_in_a_large_header(tmp_path: Path) -> None:
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    names = [*(f"t{i}" for i in range(100_000)), "t99999"]
    header = ("{" + ",".join(f'"{name}":{entry}' for name in names) + "}").encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    start = time.process_time()
    with pytest.raises(CheckpointError, match="'t99999' occurs twice"):
        read_safetensors(path)
    assert time.process_time() - start < SECONDS
