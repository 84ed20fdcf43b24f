"""Generating through methods that a subclass (or an assignment to the object) has replaced.

Answers are made by the scheduler, which knows nothing of a `Llama` object's methods. Where `eval`, `sample`
or `generate` are a program's own, they are called for one token at a time, as llama-cpp-python does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import fields
from typing import Any

from pyllamacpu.engine.generate import Generation, GenerationStats, Request, TextEvent
from pyllamacpu.engine.token_ids import common_prefix, stand_for_images
from pyllamacpu.errors import OptionError
from pyllamacpu.sampling.options import SamplingOptions


def is_overridden(llama: Any, base: type, *names: str) -> bool:
    """Whether one of these methods is not `base`'s own any more."""
    return any(
        name in llama.__dict__ or getattr(type(llama), name) is not getattr(base, name) for name in names
    )


def generate_by_hand(
    llama: Any,
    tokens: Sequence[int],
    reset: bool,
    criteria: Sequence[Any],
    form: object,
    keywords: dict[str, Any],
) -> Generator[int, Sequence[int] | None, None]:
    """What `Llama.generate` yields, by calling `eval` and `sample`."""
    _refuse_form(form)
    ids = list(tokens)
    if reset:
        n = common_prefix(list(llama._session.tokens), ids[:-1])
        if n:
            llama.n_tokens, ids = n, ids[n:]
        else:
            llama.reset()
    while True:
        llama.eval(ids)
        token = llama.sample(**keywords)
        if criteria and any(criterion(llama._input_ids, llama.scores[-1]) for criterion in criteria):
            return
        more = yield token
        ids = [token, *(more or ())]


def events_by_hand(
    llama: Any, request: Request, save: Callable[[Any], None] | None = None
) -> Iterator[TextEvent]:
    """The text events of a request, by calling `generate`; `save` gets the state behind the last one."""
    _refuse_form(request.grammar)
    refuse_images(request.prompt, "generate, eval or sample")
    generation = Generation(request, llama.text_tokenizer, llama.n_vocab(), llama.n_ctx())
    llama.set_seed(request.sampling.seed)
    started = time.monotonic()
    for token in llama.generate(list(request.prompt), **_keywords(request)):
        event = generation.take(token, llama.scores[max(llama.n_tokens - 1, 0)])
        if event is not None:
            yield event
        if generation.reason is not None:
            break
    else:
        generation.reason = "stop"  # of the program's own, or a criterion's
    n, seconds = generation.n_generated, time.monotonic() - started
    yield generation.last_event(GenerationStats(len(request.prompt), 0, n, 0.0, seconds))
    if save is not None:
        save(llama.save_state())


def _refuse_form(form: object) -> None:
    if form is not None:
        raise OptionError("grammar: a form cannot be kept by a method that replaces generate, eval or sample")


def refuse_images(tokens: Sequence[int], methods: str) -> None:
    """Raises OptionError for images in a prompt that a program's own methods would be given."""
    if stand_for_images(tokens):
        raise OptionError(f"images cannot be given to a method that replaces {methods}")


def _keywords(request: Request) -> dict[str, Any]:
    """The keywords of `generate` that differ from the options' own defaults."""
    plain, chosen = SamplingOptions(), request.sampling
    names = (field.name for field in fields(chosen) if field.name != "seed")
    keywords = {
        name: getattr(chosen, name) for name in names if getattr(chosen, name) != getattr(plain, name)
    }
    if "temperature" in keywords:
        keywords["temp"] = keywords.pop("temperature")  # generate's name for it
    if request.processors:
        keywords["logits_processor"] = request.processors
    if request.criteria:
        keywords["stopping_criteria"] = request.criteria
    return keywords
