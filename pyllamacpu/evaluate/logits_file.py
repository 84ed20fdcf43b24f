"""Files of a base model's logits, in llama-perplexity's format: written, and compared with.

The file: "_logits_", n_ctx (uint32), n_vocab and the number of windows (int32), the windows' tokens (int32),
then for each scored token a row of n_vocab 16-bit codes, of an even number of them, after a scale and a
minimum (float32): ln p = scale * code + minimum, cut off at 16 below the largest.
"""

from __future__ import annotations

import os
import struct
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.engine import Engine
from pyllamacpu.errors import ModelError, OptionError
from pyllamacpu.evaluate import divergence
from pyllamacpu.evaluate.divergence import Divergence
from pyllamacpu.evaluate.perplexity import Perplexity
from pyllamacpu.evaluate.perplexity import Progress as OnWindow
from pyllamacpu.evaluate.rows import Doubles, Floats
from pyllamacpu.evaluate.statistics import mean
from pyllamacpu.evaluate.windows import Block, Steps, Windows, blocks, windows
from pyllamacpu.files import FileKind, PartialFile, begins_with, check_output, open_regular, read_problem

MAGIC = b"_logits_"
DEPTH = 16.0  # nats below the largest logit that are kept apart
_HEADER = struct.Struct("<8sIii")


LOGITS_FILE = FileKind("a file of logits", begins_with(MAGIC))


def save_logits(
    path: Path, engine: Engine, cut: Windows, on_window: OnWindow | None = None, force: bool = False
) -> Perplexity:
    """Writes the model's logits on the windows to `path`, whole or not at all; returns its perplexity.

    Raises OutputError when the file cannot be written, is the model, or (unless `force`) of another kind.
    """
    check_output(path, engine.file.paths, LOGITS_FILE, force)
    start = time.perf_counter()
    nll: Doubles = np.empty(cut.targets.shape, np.float64)
    steps = Steps(1, engine.n_batch, Steps.of(cut, engine).scored_places)  # rows in the file's order
    with PartialFile(path) as part:
        part.write(_HEADER.pack(MAGIC, cut.n_ctx, engine.n_vocab, cut.n_windows))
        part.write(cut.tokens.astype("<i4").tobytes())
        for block in blocks(engine, cut, steps):
            part.write(_packed(block).tobytes())
            block.of(nll)[:] = block.nll(cut)
            done = block.window + 1
            if on_window and block.start + block.n_places == cut.n_scored:
                on_window(done, cut.n_windows, float(np.exp(nll[:done].mean())))
    seconds = time.perf_counter() - start
    return Perplexity(mean(nll), cut.n_ctx, cut.n_windows, cut.tokens.size, nll.size, seconds)


def _row_codes(n_vocab: int) -> int:
    return (n_vocab + 1) // 2 * 2


def _packed(block: Block) -> npt.NDArray[np.uint16]:
    """(rows, 4 + codes): the rows of a block as the file has them."""
    logits = block.logits
    rows, n_vocab = logits.shape
    top = logits.max(axis=1)
    low = np.maximum(logits.min(axis=1), top - np.float32(DEPTH))
    scale = (top - low) / np.float32(65535.0)
    result = np.zeros((rows, 4 + _row_codes(n_vocab)), "<u2")
    result[:, :4] = np.stack([scale, (low - block.log_sums).astype(np.float32)], 1).astype("<f4").view("<u2")
    steps = (np.maximum(logits, low[:, None]) - low[:, None]) / np.where(scale > 0, scale, 1.0)[:, None]
    result[:, 4 : 4 + n_vocab] = np.rint(steps)
    return result


@dataclass(frozen=True, eq=False)
class LogitsFile:
    """An opened file: its windows' tokens (n_windows, n_ctx), and the rows of codes, mapped."""

    path: Path
    n_vocab: int
    tokens: npt.NDArray[np.int32]
    rows: npt.NDArray[np.uint16]  # (n_windows, scored tokens, 4 + codes)

    @property
    def n_ctx(self) -> int:
        return int(self.tokens.shape[1])

    @classmethod
    def open(cls, path: Path) -> LogitsFile:
        """Raises OptionError for any other file, and for a damaged one."""
        try:
            with os.fdopen(open_regular(path), "rb") as file:
                header = file.read(_HEADER.size)
                size = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise OptionError(f"{path}: {read_problem(error)}") from error
        if len(header) < _HEADER.size or header[:8] != MAGIC:
            raise OptionError(f"{path} is not a file of logits; write one with --kl-divergence-base")
        _, n_ctx, n_vocab, n = _HEADER.unpack(header)
        scored, width = n_ctx - 1 - n_ctx // 2, 4 + _row_codes(max(n_vocab, 0))
        start = _HEADER.size + 4 * n * n_ctx
        if n_ctx < 4 or n_vocab < 1 or n < 1 or size != start + 2 * n * scored * width:
            raise OptionError(f"{path}: the file of logits is damaged or incomplete; write it again")
        data = np.memmap(path, np.uint8, "r")
        tokens = data[_HEADER.size : start].view("<i4").reshape(n, n_ctx).astype(np.int32)
        if tokens.min() < 0 or tokens.max() >= n_vocab:
            raise OptionError(f"{path}: the file of logits is damaged: token ids outside its {n_vocab}")
        return cls(Path(path), n_vocab, tokens, data[start:].view("<u2").reshape(n, scored, width))

    def divergence(
        self, engine: Engine, bos: int | None, on_window: divergence.Progress | None = None
    ) -> Divergence:
        """Of the model from the one that the file is of. Raises ModelError for another vocabulary."""
        if engine.n_vocab != self.n_vocab:
            raise ModelError(
                f"{engine.file.paths[0]} has a vocabulary of {engine.n_vocab} tokens, and the logits in "
                f"{self.path} are of a model with {self.n_vocab}"
            )
        cut = windows(self.tokens.ravel(), self.n_ctx, bos=bos)
        against = partial(self._against, cut)
        return divergence.compare(against, engine, cut, Steps.of(cut, engine), on_window)

    def _against(self, cut: Windows, block: Block) -> tuple[Doubles, Doubles, npt.NDArray[np.bool_]]:
        coded = block.of(self.rows).reshape(len(block.logits), -1)
        base = _log_probabilities(coded, self.n_vocab)
        if not np.isfinite(base).all():
            raise OptionError(f"{self.path}: the file of logits is damaged: a row holds no numbers")
        kld = np.array([_divergence(*row) for row in zip(base, block.logits, block.log_sums, strict=True)])
        nll = -base[np.arange(len(base)), block.of(cut.targets).ravel()].astype(np.float64)
        return kld, nll, base.argmax(axis=1) == block.tops


def _log_probabilities(rows: npt.NDArray[Any], n_vocab: int) -> Floats:
    head = np.ascontiguousarray(rows[:, :4]).view("<f4")
    result: Floats = head[:, :1] * rows[:, 4 : 4 + n_vocab] + head[:, 1:]
    return result


def _divergence(base: Floats, logits: Floats, log_sum: float) -> float:
    """llama-perplexity's sum over what is above e^-16 in the base."""
    kept = np.flatnonzero(base > -DEPTH)
    p = base[kept].astype(np.float64)
    return float((np.exp(p) * (p - logits[kept] + log_sum)).sum())
