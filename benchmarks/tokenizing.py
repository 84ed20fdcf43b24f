"""How fast a text becomes tokens: a first reading, later ones, and the `tokenizers` library's, in turn.

    python benchmarks/tokenizing.py MODEL.gguf book.txt [--rounds 7]

One core, by CPU time. The library gets the same vocabulary, merges and patterns; ids
must be equal.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.text.bpe_words import PRE_TOKENIZERS
from pyllamacpu.text.load import load_tokenizer


def library(metadata: Any) -> Any:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    pieces = list(metadata["tokenizer.ggml.tokens"])
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    pre = PRE_TOKENIZERS[metadata["tokenizer.ggml.pre"]]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    found = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre.whole_words))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return found


def seconds(work: Callable[[], Any]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if hasattr(os, "sched_setaffinity"):  # a long text is cut in as many parts as there are CPUs
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    metadata = GGUFFile.open(options.model).metadata
    text = Path(options.text).read_text(encoding="utf-8", errors="replace")
    megabytes = len(text.encode()) / 1e6
    theirs = library(metadata)
    rows: dict[str, list[float]] = {"ours, first": [], "ours, again": [], "tokenizers": []}
    for _ in range(options.rounds):
        ours = load_tokenizer(metadata)
        assert ours is not None
        ours.encode("a", add_special=False)  # what is made once for a model
        encode = partial(ours.encode, text, add_special=False)
        rows["ours, first"].append(seconds(encode))
        rows["ours, again"].append(seconds(encode))
        rows["tokenizers"].append(seconds(partial(theirs.encode, text)))
    same = ours.encode(text, add_special=False) == theirs.encode(text).ids
    for name, found in rows.items():
        print(
            f"{name:12s} {megabytes / statistics.median(found):7.1f} MB/s (best {megabytes / min(found):.1f})"
        )
    print(f"{megabytes:.2f} MB, ids {'equal' if same else 'NOT EQUAL'}")


if __name__ == "__main__":
    main()
