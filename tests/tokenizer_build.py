"""Small tokenizers trained by the library that makes tokenizer.json, and the converted ones beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as LibraryTokenizer

from pyllamacpu.convert.tokenizers.vocabulary import Vocabulary, read_vocabulary
from pyllamacpu.text.bpe_words import GPT4O, LLAMA3, QWEN2, TEKKEN
from pyllamacpu.text.load import load_tokenizer
from pyllamacpu.text.tokenizer import Tokenizer
from pyllamacpu.text.vocab import ADDS_EOS

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and then the dog sleeps again; 12345 times.",
    "Hello hello world! It's the third of the three things that they'd think of there.",
    "def hello(world):\n    return world + 1234\n\n\tprint('the end')\n",
    "Ünïcödé, 日本語 and emoji 🦙🦙 — the rest is the rest.",
] * 4
TEXTS = [
    *CORPUS[:4],
    "",
    " ",
    "   leading and  double   spaces ",
    "the",
    "They'RE 3333 33 3.14 the\r\n\r\nend\n",
    "tabs\tand\u00a0more\u3000ж",
    "🦙",
    "\x00\x7f",
]


def metadata(vocabulary: Vocabulary) -> dict[str, Any]:
    return {key.name: key.value for key in vocabulary.keys}


def converted(folder: Path, n_rows: int = 0, **more: Any) -> tuple[Tokenizer, dict[str, Any], Vocabulary]:
    vocabulary = read_vocabulary(folder, more.pop("config", {}), n_rows, **more)
    found = metadata(vocabulary)
    tokenizer = load_tokenizer(found)
    assert tokenizer is not None
    assert not {*tokenizer.warnings} - {ADDS_EOS}
    return tokenizer, found, vocabulary


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))


def split(pattern: str) -> Any:
    whole = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([whole, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def digits() -> Any:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])


KINDS = {
    "llama-bpe": (lambda: split(LLAMA3), True),
    "dbrx": (lambda: split(LLAMA3), False),
    "llama4": (lambda: split(GPT4O), False),
    "qwen2": (lambda: split(QWEN2), False),
    "tekken": (lambda: split(TEKKEN), True),
    "gpt-2": (lambda: pre_tokenizers.ByteLevel(add_prefix_space=False), False),
    "smollm": (digits, False),
}


def byte_level(pre: str, bos: bool = True, n_vocab: int = 420) -> LibraryTokenizer:
    made, whole_words = KINDS[pre]
    tokenizer = LibraryTokenizer(models.BPE(ignore_merges=whole_words))
    tokenizer.pre_tokenizer = made()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=n_vocab, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<|begin|>", "<|end|>", "<|eot_id|>", "<|eom_id|>"])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    if bos:
        first = [("<|begin|>", tokenizer.token_to_id("<|begin|>"))]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=first
        )
    return tokenizer
