"""llama.cpp's own endpoints: completion, infill, tokens, templates, properties.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pyllamacpu import __version__
from pyllamacpu.api.chat_images import MEDIA
from pyllamacpu.api.responses import chat_logprobs
from pyllamacpu.api.tools import shown_tools
from pyllamacpu.engine.generate import GenerationStats, TextEvent
from pyllamacpu.engine.pooling import NONE
from pyllamacpu.sampling.options import SamplingOptions
from pyllamacpu.server import http
from pyllamacpu.server.adapters import read_lora
from pyllamacpu.server.constraints import openai_grammar
from pyllamacpu.server.embeddings import read_inputs
from pyllamacpu.server.endings import shown_findings
from pyllamacpu.server.errors import HTTPError, openai_error
from pyllamacpu.server.fields import Fields, wrong
from pyllamacpu.server.generation import Answers, Generate, Service
from pyllamacpu.server.images import SentImage, shown_messages
from pyllamacpu.server.line_limits import LineLimits
from pyllamacpu.server.messages import opens_answer, read_messages, template_extra
from pyllamacpu.server.models import Model
from pyllamacpu.server.prompts import Text, about
from pyllamacpu.server.sampling_fields import BIG, WIDE, read_sampling
from pyllamacpu.server.tools import read_tools
from pyllamacpu.text import Tokenizer

_ABSENT = object()
_NO_EFFECT = ("cache_prompt", "id_slot", "n_keep", "timings_per_token", "samplers_seed")


def router(service: Service, strict: bool) -> APIRouter:
    """The routes of the dialect; with `strict` unknown fields are refused."""
    routes = APIRouter()
    for path, function in _POST.items():
        routes.add_api_route(path, _handler(service, strict, function), methods=["POST"])

    @routes.get("/props")
    async def props(model: str | None = None) -> Response:
        async with service.models.use(model) as loaded:
            return http.json_response(_props(service, loaded))

    @routes.get("/slots")
    async def slots(fail_on_no_slot: str | None = None) -> Response:
        async with service.models.use(None) as model:
            n, running = service.models.options.parallel, model.scheduler.n_running
            if running >= n and fail_on_no_slot in ("1", "true"):
                raise HTTPError("no slot is free", status=503, code="no_slot", retry_after=1)
            rows = [{"id": i, "n_ctx": model.engine.n_ctx, "is_processing": i < running} for i in range(n)]
            return http.json_response(rows)

    @routes.post("/rerank")
    @routes.post("/reranking")
    @routes.post("/v1/rerank")
    @routes.post("/v1/reranking")
    async def rerank(request: Request) -> Response:
        await http.read_fields(request)
        raise HTTPError("a language model cannot rank documents; that takes a reranker", code="not_supported")

    return routes


def _handler(service: Service, strict: bool, function: Any) -> Any:
    async def handler(request: Request) -> Response:
        fields = await http.read_fields(request)
        return await http.answer(request, function(service, fields, strict))

    return handler


def _props(service: Service, model: Model) -> dict[str, Any]:
    tokenizer = model.tokenizer
    return {
        "default_generation_settings": {
            "params": _settings(_own_sampling(model)),
            "n_ctx": model.engine.n_ctx,
        },
        "total_slots": service.models.options.parallel,
        "model_path": str(model.source.path),
        "model_alias": model.name,
        "chat_template": model.template.source,
        "bos_token": "" if tokenizer.bos is None else tokenizer.piece(tokenizer.bos),
        "eos_token": "" if tokenizer.eos is None else tokenizer.piece(tokenizer.eos),
        "modalities": {"vision": model.parts.vision is not None, "audio": False},
        "build_info": f"pyllamacpu {__version__}",
    }


def _own_sampling(model: Model) -> SamplingOptions:
    own: dict[str, Any] = dict(model.own_sampling)
    return SamplingOptions(**own)


def _settings(sampling: SamplingOptions, request: Generate | None = None) -> dict[str, Any]:
    """How answers are made, by llama.cpp's names; without a request as one that says nothing has it."""
    limit = None if request is None else request.max_tokens
    grammar = None if request is None else request.grammar
    return {
        **asdict(sampling),
        "n_predict": -1 if limit is None else limit,
        "max_tokens": -1 if limit is None else limit,
        "n_keep": 0,
        "ignore_eos": request is not None and request.ignore_eos,
        "stop": [] if request is None else list(request.stop),
        "n_probs": 0 if request is None else request.logprobs or 0,
        "grammar": "" if grammar is None else grammar.source,
    }


# Tokens and templates


async def _tokenize(service: Service, fields: Fields, strict: bool) -> Response:
    async with service.models.use(fields.text("model")) as model:
        text = fields.text("content")
        if text is None:
            raise fields.wrong("content", "is missing")
        special, parse = fields.flag("add_special"), fields.flag("parse_special", True)
        pieces = fields.flag("with_pieces")
        fields.finish(strict)
        ids = await service.off_loop(model.tokenizer.encode, text, special, parse)
        shown = [{"id": i, "piece": _piece(model.tokenizer, i)} for i in ids] if pieces else ids
        return http.json_response({"tokens": shown})


def _piece(tokenizer: Tokenizer, token: int) -> str | list[int]:
    """The text of a token, or its bytes where they are no text."""
    raw = tokenizer.token_bytes(token, special=True)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return list(raw)


async def _detokenize(service: Service, fields: Fields, strict: bool) -> Response:
    async with service.models.use(fields.text("model")) as model:
        ids = fields.items("tokens")
        if "tokens" not in fields:
            raise fields.wrong("tokens", "is missing")
        if not all(type(i) is int and 0 <= i < model.tokenizer.n_vocab for i in ids):
            raise fields.wrong("tokens", f"must be ids from 0 to {model.tokenizer.n_vocab - 1}")
        fields.finish(strict)
        return http.json_response({"content": model.tokenizer.decode(ids, special=True)})


async def _apply_template(service: Service, fields: Fields, strict: bool) -> Response:
    async with service.models.use(fields.text("model")) as model:
        messages = shown_messages(read_messages(fields))
        offered, extra, opens = read_tools(fields).offered, template_extra(fields), opens_answer(fields)
        fields.finish(strict)
        prompt = await service.off_loop(_rendered, model, messages, offered, extra, opens)
        return http.json_response({"prompt": prompt})


def _rendered(
    model: Model, messages: Sequence[Any], offered: Sequence[Any], extra: Mapping[str, Any], opens: bool
) -> str:
    with about("messages"):
        shown = shown_tools(model.template, model.conversation(messages), offered, **extra)
        return model.template.render(*shown, opens, **extra)


async def _embedding(service: Service, fields: Fields, strict: bool) -> Response:
    async with service.models.use(fields.text("model")) as model:
        where = "content" if "content" in fields else "input"
        inputs = read_inputs(fields, where)
        by_token = model.pooling == NONE  # vectors of tokens are as they are, as llama.cpp's
        kind = fields.integer("embd_normalize", -1, 2, -1 if by_token else 2)
        if kind not in (-1, 2):
            raise fields.wrong("embd_normalize", "allowed: -1 (none) and 2 (Euclidean)")
        adapters = read_lora(fields, model)
        fields.finish(strict)
        vectors, _ = await service.embed(
            model, inputs, normalize=kind == 2, by_token=True, where=where, adapters=adapters
        )
        rows = vectors if by_token else [[vector] for vector in vectors]
        return http.json_response([{"index": i, "embedding": row} for i, row in enumerate(rows)])


# Completion


async def _completion(service: Service, fields: Fields, strict: bool) -> Response:
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(service.models.use(fields.text("model")))
        prompts = await service.off_loop(_prompts, model, fields)
        return await _run(service, stack, model, fields, prompts, strict)


async def _infill(service: Service, fields: Fields, strict: bool) -> Response:
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(service.models.use(fields.text("model")))
        prefix, suffix = fields.text("input_prefix"), fields.text("input_suffix")
        if prefix is None or suffix is None:
            missing = "input_prefix" if prefix is None else "input_suffix"
            raise fields.wrong(missing, "is missing")
        text = _extra(fields) + prefix + (fields.text("prompt") or "")
        prompt = Text(text, suffix, fields.flag("spm_infill"))
        return await _run(service, stack, model, fields, [prompt], strict)


def _extra(fields: Fields) -> str:
    """Other files of a project, as text before the prefix."""
    parts = []
    for i, item in enumerate(fields.items("input_extra")):
        own = Fields(item, f"input_extra[{i}].")
        name, text = own.text("filename") or "", own.text("text") or ""
        parts.append(f"--- {name or 'snippet'} ---\n{text}\n")
    return "\n".join(parts)


def _prompts(model: Model, fields: Fields) -> list[Text]:
    """A text, token ids, a mixture of both, a text with images, or a list of such prompts."""
    value = fields.raw("prompt")
    if value is None:
        raise fields.wrong("prompt", "is missing")
    several = isinstance(value, list) and any(isinstance(item, (list, dict)) for item in value)
    several = several or (isinstance(value, list) and all(isinstance(item, str) for item in value))
    values = value if several else [value]
    if not values:
        raise fields.wrong("prompt", "is empty")
    names = [f"prompt[{i}]" for i in range(len(values))] if several else ["prompt"]
    return [_one_prompt(model, item, where) for item, where in zip(values, names, strict=True)]


def _one_prompt(model: Model, value: Any, where: str) -> Text:
    if isinstance(value, dict):
        return replace(_with_media(Fields(value, f"{where}.")), where=where)
    return Text(_text_or_ids(model, value, where), where=where)


def _with_media(prompt: Fields) -> Text:
    """Text with `<__media__>` where images stand, and those in base64."""
    text, media = prompt.text("prompt_string"), prompt.items("multimodal_data")
    if text is None:
        raise prompt.wrong("prompt_string", "is missing")
    if text.count(MEDIA) != len(media):
        raise prompt.wrong("multimodal_data", f"{len(media)}, not as many as {MEDIA} in prompt_string")
    images = [
        SentImage({"base64": data}, f"{prompt.where}multimodal_data[{i}]") for i, data in enumerate(media)
    ]
    return Text(text, images=tuple(images))


def _text_or_ids(model: Model, value: Any, where: str) -> str | list[int]:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise wrong(where, "must be a text, token ids, or a list of them")
    ids: list[int] = []
    for item in value:
        if type(item) is int:
            ids.append(item)
        elif isinstance(item, str):
            ids += model.tokenizer.encode(item, add_special=not ids, parse_special=True)
        else:
            raise wrong(where, "must be a text, token ids, or a list of them")
    return ids


async def _run(
    service: Service,
    stack: AsyncExitStack,
    model: Model,
    fields: Fields,
    prompts: Sequence[Text],
    strict: bool,
) -> Response:
    request = _request(model, fields, prompts[0])
    stream, return_tokens = fields.flag("stream"), fields.flag("return_tokens")
    limits, wanted = _line_limits(fields), fields.strings("response_fields")
    fields.ignore(*_NO_EFFECT)
    fields.finish(strict)
    requests = [replace(request, prompt=prompt, limits=limits()) for prompt in prompts]
    answers = await stack.enter_async_context(service.generate(model, requests))
    shape = _Shape(answers, requests, return_tokens, wanted)
    if stream:
        return http.Stream(stack.pop_all(), shape.chunks(), lambda e: http.sse(openai_error(e)))
    found = enumerate(await answers.whole())
    whole = [shape.whole(i, events) for i, events in found]
    return http.json_response(whole[0] if len(whole) == 1 else whole)


def _request(model: Model, fields: Fields, prompt: Text) -> Generate:
    limit = fields.integer("n_predict", -2, BIG, fields.integer("max_tokens", -2, BIG, -1))
    assert limit is not None
    fields.refuse("post_sampling_probs", "is not supported", False)
    fields.refuse("return_progress", "is not supported", False)
    n_probs = fields.integer("n_probs", 0, 100) or 0
    return Generate(
        prompt,
        read_sampling(fields, model, WIDE),
        max_tokens=None if limit < 0 else limit,
        stop=fields.strings("stop"),
        logprobs=n_probs or None,
        ignore_eos=fields.flag("ignore_eos"),
        grammar=openai_grammar(fields),
        adapters=read_lora(fields, model),
        stop_loops=fields.optional_flag("stop_loops"),
        draft=fields.flag("draft", True) and fields.integer("speculative.n_max", 0, BIG) != 0,
    )


def _line_limits(fields: Fields) -> Callable[[], LineLimits | None]:
    """Makes the limits of one answer."""
    milliseconds = fields.integer("t_max_predict_ms", -1, BIG) or -1
    n_indent = fields.integer("n_indent", 0, BIG) or 0
    if milliseconds < 0 and not n_indent:
        return lambda: None
    return lambda: LineLimits(milliseconds / 1000 if milliseconds > 0 else None, n_indent)


def _selected(shown: dict[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    """The fields that are wanted and there, by their paths, such as timings/predicted_n."""
    found = {}
    for path in wanted:
        value: Any = shown
        for name in path.split("/"):
            value = value.get(name, _ABSENT) if isinstance(value, dict) else _ABSENT
        if value is not _ABSENT:
            found[path] = value
    return found


class _Shape:
    """Answers in llama.cpp's shape."""

    def __init__(
        self, answers: Answers, requests: Sequence[Generate], return_tokens: bool, wanted: Sequence[str]
    ) -> None:
        """wanted: the fields that the last or only object of an answer has; none: all."""
        self._answers, self._requests = answers, requests
        self._return_tokens, self._wanted = return_tokens, wanted
        self._settings = _settings(requests[0].sampling, requests[0])
        self._request = requests[0]  # in what they have in common

    def whole(self, index: int, events: Sequence[TextEvent]) -> dict[str, Any]:
        limits = self._requests[index].limits
        text = "".join(event.text for event in events)
        shown: dict[str, Any] = {"content": text if limits is None else limits.within(text)}
        if self._return_tokens:
            shown["tokens"] = [token for event in events for token in event.tokens]
        return self.final(index, events, shown | self._probabilities(events))

    async def chunks(self) -> AsyncIterator[bytes]:
        sent: dict[int, list[TextEvent]] = {}
        async for index, event in self._answers.pieces():
            sent.setdefault(index, []).append(event)
            if event.finish_reason is None or event.text or event.tokens:
                piece = {"index": index, "content": event.text, "tokens": list(event.tokens), "stop": False}
                yield http.sse(piece | self._probabilities([event]))
            if event.finish_reason is not None:
                yield http.sse(self.final(index, sent.pop(index), {}))

    def final(self, index: int, events: Sequence[TextEvent], said: dict[str, Any]) -> dict[str, Any]:
        """The answer, or with nothing `said` the end of a stream."""
        last, answers = events[-1], self._answers
        assert last.stats is not None
        by_word = "word" if last.stop_string is not None else "eos"
        kind = {"length": "limit", "loop": "loop", "content_filter": "content_filter"}.get(
            str(last.finish_reason), by_word
        )
        limits = self._requests[index].limits
        shown = {
            "index": index,
            "content": "",
            "tokens": [],
            "stop": True,
            "model": answers.model.name,
            "tokens_predicted": last.stats.n_generated,
            "tokens_evaluated": last.stats.n_prompt,
            "tokens_cached": last.stats.n_cached,
            "truncated": False,
            "stop_type": "limit" if limits is not None and limits.ended else kind,
            "stopping_word": last.stop_string or "",
            **shown_findings(last),
            "has_new_line": any("\n" in event.text for event in events),
            "generation_settings": self._settings,
            "prompt": self._shown_prompt(index),
            "timings": timings(last.stats),
            **said,
        }
        return _selected(shown, self._wanted) if self._wanted else shown

    def _shown_prompt(self, index: int) -> str:
        model = self._answers.model
        return model.tokenizer.decode(model.engine.images.visible(self._answers.prompts[index]), special=True)

    def _probabilities(self, events: Sequence[TextEvent]) -> dict[str, Any]:
        if self._request.logprobs is None:
            return {}
        entries = [entry for event in events for entry in event.logprobs]
        rows = chat_logprobs(self._answers.model.tokenizer, entries, with_ids=True)["content"]
        return {"completion_probabilities": rows}


def timings(stats: GenerationStats) -> dict[str, Any]:
    n_read = stats.n_prompt - stats.n_cached
    return {
        "cache_n": stats.n_cached,
        "prompt_n": n_read,
        "prompt_ms": 1000 * stats.prompt_seconds,
        "prompt_per_token_ms": 1000 * stats.prompt_seconds / max(n_read, 1),
        "prompt_per_second": stats.prompt_rate,
        "predicted_n": stats.n_generated,
        "predicted_ms": 1000 * stats.generate_seconds,
        "predicted_per_token_ms": 1000 * stats.generate_seconds / max(stats.n_generated, 1),
        "predicted_per_second": stats.generate_rate,
        **({"draft_n": stats.n_drafted, "draft_n_accepted": stats.n_accepted} if stats.n_drafted else {}),
        **({"image_n": stats.n_image, "image_ms": 1000 * stats.image_seconds} if stats.n_image else {}),
    }


_POST = {
    "/completion": _completion,
    "/completions": _completion,
    "/infill": _infill,
    "/tokenize": _tokenize,
    "/detokenize": _detokenize,
    "/apply-template": _apply_template,
    "/embedding": _embedding,
}
