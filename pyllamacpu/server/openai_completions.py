"""OpenAI's text completions: several prompts and answers, echo, suffix, the best of many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyllamacpu.api.responses import Heading, LogprobWriter
from pyllamacpu.engine.generate import TextEvent
from pyllamacpu.server.adapters import read_lora
from pyllamacpu.server.constraints import openai_grammar
from pyllamacpu.server.embeddings import input_names, read_inputs
from pyllamacpu.server.endings import openai_reason
from pyllamacpu.server.fields import Fields
from pyllamacpu.server.generation import Answers, Generate
from pyllamacpu.server.logprobs import MAX_TOP, prompt_logprobs
from pyllamacpu.server.models import Model
from pyllamacpu.server.openai_endpoint import MAX_ANSWERS, NO_EFFECT, Endpoint, usage, wrap
from pyllamacpu.server.prompts import Chat, Text, check_room, prompt_ids
from pyllamacpu.server.sampling_fields import BIG, read_sampling


class TextCompletion(Endpoint):
    kind = chunk_kind = "text_completion"

    def requests(self, fields: Fields, model: Model, stream: bool) -> list[Generate]:
        prompts = read_inputs(fields, "prompt", MAX_ANSWERS)
        fields.ignore(*NO_EFFECT, "cache_prompt")
        suffix = fields.text("suffix")
        self.echo = fields.flag("echo")
        self.logprobs = _n_logprobs(fields)
        self.n = fields.integer("n", 1, MAX_ANSWERS) or 1
        best_of = fields.integer("best_of", 1, MAX_ANSWERS) or self.n
        if best_of < self.n:
            raise fields.wrong("best_of", f"{best_of} is less than n, which is {self.n}")
        if best_of > self.n and stream:
            raise fields.wrong("best_of", "the best cannot be chosen while answers are streamed")
        if self.echo and suffix is not None:
            raise fields.wrong("echo", "does not go with a suffix")
        limit = fields.integer("max_tokens", 0, BIG)  # 0: nothing but the prompt is read
        self.ranked = best_of > self.n
        n_top = 0 if self.logprobs is None and self.ranked else self.logprobs
        options = read_sampling(fields, model)
        stop, ignore_eos = fields.strings("stop"), fields.flag("ignore_eos")
        grammar, adapters = openai_grammar(fields), read_lora(fields, model)
        stop_loops = fields.optional_flag("stop_loops")
        draft = fields.flag("draft", True)
        return [
            Generate(
                Text(prompt, suffix, where=where),
                options,
                max_tokens=16 if limit is None else limit,
                stop=stop,
                logprobs=n_top,
                n=best_of,
                ignore_eos=ignore_eos,
                grammar=grammar,
                adapters=adapters,
                stop_loops=stop_loops,
                draft=draft,
            )
            for prompt, where in zip(prompts, input_names(fields, "prompt"), strict=True)
        ]

    async def prepare(self, model: Model, requests: Sequence[Generate]) -> None:
        self.echoed: list[str] = []
        self.first: list[Any] = []
        echoed: list[tuple[Generate, list[int]]] = []
        for request in requests if self.echo else ():
            assert isinstance(request.prompt, Text)
            text = request.prompt.text
            ids = await self.service.off_loop(prompt_ids, model, Text(text, where=request.prompt.where))
            check_room(len(ids), model.engine.n_ctx, request.prompt.where)
            self.echoed.append(text if isinstance(text, str) else model.tokenizer.decode(ids))
            echoed.append((request, ids))
        for request, ids in echoed:
            self.first.append(
                ()
                if self.logprobs is None
                else await prompt_logprobs(self.service, model, ids, self.logprobs, request.adapters)
            )

    def started(self, answers: Answers, requests: Sequence[Generate]) -> None:
        self.prompt_of = [i for i, request in enumerate(requests) for _ in range(request.n)]
        self.writers = [LogprobWriter(answers.model.tokenizer, 0) for _ in self.prompt_of]
        for writer, prompt in zip(self.writers, self.prompt_of, strict=True) if self.echo else ():
            asked = requests[prompt].prompt
            assert isinstance(asked, Text)
            writer.echo(self.echoed[prompt], self.first[prompt], spelled=isinstance(asked.text, str))
        if not self.echo:
            lengths = [_n_characters(answers.model, request.prompt) for request in requests]
            self.writers = [LogprobWriter(answers.model.tokenizer, lengths[p]) for p in self.prompt_of]

    def table(self, index: int, events: Sequence[TextEvent]) -> dict[str, Any] | None:
        """The logprobs of an answer's events."""
        if self.logprobs is None:
            return None
        return self.writers[index].table([entry for event in events for entry in event.logprobs])

    def whole(self, heading: Heading, events: list[list[TextEvent]], answers: Answers) -> dict[str, Any]:
        choices = []
        for prompt in range(len(answers.prompts)):
            own = [i for i, p in enumerate(self.prompt_of) if p == prompt]
            if self.ranked:
                own = sorted(own, key=lambda i: -_likelihood(events[i]))[: self.n]
            choices += [self.choice(i, events[i]) for i in own]
        numbered = [{**choice, "index": i} for i, choice in enumerate(choices)]
        return wrap(heading, self.kind, numbered, usage=usage(answers))

    def choice(self, index: int, events: Sequence[TextEvent]) -> dict[str, Any]:
        before = self.opening(index) or {"text": "", "logprobs": None}
        text = before["text"] + "".join(event.text for event in events)
        table = self.table(index, events)
        if table is not None and before["logprobs"] is not None:
            table = {name: before["logprobs"][name] + table[name] for name in table}
        return {"text": text, "index": index, "logprobs": table, **openai_reason(events[-1])}

    def opening(self, index: int) -> dict[str, Any] | None:
        if not self.echo:
            return None
        prompt = self.prompt_of[index]
        table = None if self.logprobs is None else self.writers[index].table(self.first[prompt])
        return {"text": self.echoed[prompt], "index": index, "logprobs": table, "finish_reason": None}

    def deltas(self, index: int, event: TextEvent) -> list[dict[str, Any]]:
        if not event.text and not event.tokens:
            return []
        table = self.table(index, [event])
        return [{"text": event.text, "index": index, "logprobs": table, "finish_reason": None}]

    def closing(self, index: int, event: TextEvent) -> dict[str, Any]:
        return {"text": "", "index": index, "logprobs": None, **openai_reason(event)}


def _n_characters(model: Model, prompt: Chat | Text) -> int:
    assert isinstance(prompt, Text)
    return len(prompt.text if isinstance(prompt.text, str) else model.tokenizer.decode(prompt.text))


def _likelihood(events: Sequence[TextEvent]) -> float:
    values = [entry.logprob for event in events for entry in event.logprobs]
    return sum(values) / len(values) if values else 0.0


def _n_logprobs(fields: Fields) -> int | None:
    """`logprobs` is a number here; true and false, as chat has them, are taken as 0 and none."""
    value = fields.raw("logprobs")
    if isinstance(value, bool):
        return 0 if value else None
    return fields.integer("logprobs", 0, MAX_TOP)
