"""Log-probabilities: how many are asked for, and those of a prompt's own tokens, for `echo`."""

from __future__ import annotations

from collections.abc import Sequence

from pyllamacpu.engine.generate import ScoreRequest
from pyllamacpu.model.lora import AdapterScales
from pyllamacpu.sampling.sampler import TokenLogprobs
from pyllamacpu.server.engine_thread import EventStream
from pyllamacpu.server.fields import Fields
from pyllamacpu.server.generation import Service
from pyllamacpu.server.models import Model

MAX_TOP = 20  # alternatives beside a token


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
    stream = EventStream(service.thread, model.scheduler)
    try:
        async with service.places(1):
            stream.submit(0, ScoreRequest(ids, model.adapters if adapters is None else adapters, n))
            _, event = await stream.next()
    finally:
        stream.close()
    assert event.scores is not None
    skipped = 1 if ids[0] == model.tokenizer.bos else 0
    shown: list[TokenLogprobs | int] = [ids[0], *event.scores]
    if skipped and len(ids) > 1:
        shown[1] = ids[1]  # behind BOS alone nothing was said
    return tuple(shown[skipped:])
