"""Log-probabilities: how many are asked for, and those of a prompt's own tokens, for `echo`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from pyllamacpu.engine.batch import Entry
from pyllamacpu.engine.pages import Sequence as KVSequence
from pyllamacpu.model.lora import AdapterScales
from pyllamacpu.sampling.rows import top_logprobs_rows
from pyllamacpu.sampling.sampler import TokenLogprobs
from pyllamacpu.server.fields import Fields
from pyllamacpu.server.generation import Service
from pyllamacpu.server.models import Model

MAX_TOP = 20  # alternatives beside a token
_CHUNK = 32  # tokens: what runs beside the prompt waits for no more


def read_logprobs(fields: Fields) -> int | None:
    """Alternatives beside each token, from `logprobs` and `top_logprobs`; None without log-probabilities."""
    wanted, n_top = fields.flag("logprobs"), fields.integer("top_logprobs", 0, MAX_TOP)
    if n_top and not wanted:
        raise fields.wrong("top_logprobs", "needs logprobs to be true")
    return (n_top or 0) if wanted else None


async def prompt_logprobs(
    service: Service, model: Model, ids: Sequence[int], n: int, adapters: AdapterScales | None
) -> tuple[TokenLogprobs | int, ...]:
    """Entries for the prompt's tokens but BOS, each with its `n` best; the first token is a bare id.
    adapters: as of a request.
    """
    sequence = model.engine.sequence()
    if (chosen := model.adapters if adapters is None else adapters) is not None:
        sequence.adapters = chosen
    found: list[TokenLogprobs | int] = []
    try:
        async with service.places(1):
            for start in range(0, len(ids), _CHUNK):
                chunk = ids[start : start + _CHUNK]
                following = ids[start + 1 : start + 1 + len(chunk)]
                call = service.thread.call(partial(_chunk, model, sequence, chunk, following, n))
                entries = await asyncio.wrap_future(call)
                found += entries
    finally:
        await asyncio.wrap_future(service.thread.call(sequence.close))
    skipped = 1 if ids[0] == model.tokenizer.bos else 0
    shown: list[TokenLogprobs | int] = [ids[0], *found]
    if skipped and len(ids) > 1:
        shown[1] = ids[1]  # behind BOS alone nothing was said
    return tuple(shown[skipped:])


def _chunk(
    model: Model, sequence: KVSequence, tokens: Sequence[int], following: Sequence[int], n: int
) -> list[TokenLogprobs | int]:
    """Evaluates `tokens`; entries of those that follow each."""
    logits = model.engine.step([Entry(sequence, tokens, "all")], poll_signals=False)
    rows = range(len(following))
    with model.engine.exclusive():
        entries = top_logprobs_rows(
            model.engine.pool, logits, rows, following, [n] * len(following), model.engine.n_vocab
        )
    for entry in entries:
        if isinstance(entry, Exception):
            raise entry
    return [entry for entry in entries if not isinstance(entry, Exception)]
