"""What the `Llama` class does with text: tokenization, completions and chats."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, overload

from pyllamacpu.api import responses
from pyllamacpu.api.caches import BaseLlamaCache
from pyllamacpu.api.compat import as_functions, handler_arguments, warn_once
from pyllamacpu.api.grammar import chosen_grammar
from pyllamacpu.api.overrides import events_by_hand, is_overridden, refuse_images
from pyllamacpu.api.prompts import (
    chat_ends,
    listed_tokens,
    stop_strings,
    stop_token_ids,
    text_prompt,
    token_count,
    warn_retired,
)
from pyllamacpu.api.responses import Heading, LogprobWriter, Plan, Response
from pyllamacpu.api.sampling_arguments import SamplingKeywords, answering
from pyllamacpu.api.state import LlamaState
from pyllamacpu.api.tokenizers import BaseLlamaTokenizer, LlamaTokenizer
from pyllamacpu.api.tokens import STREAMED_AHEAD, Tokens
from pyllamacpu.engine.generate import Request, TextDecoder, TextEvent, token_limit
from pyllamacpu.engine.pages import is_of_other_adapters
from pyllamacpu.engine.token_ids import check_tokens, common_prefix, stand_for_images
from pyllamacpu.errors import ContextError, OptionError, TokenizerError
from pyllamacpu.sampling.grammar import Grammar
from pyllamacpu.sampling.options import SamplingOptions
from pyllamacpu.sampling.sampler import LogitsProcessor, TokenLogprobs, top_logprobs
from pyllamacpu.text.infill import fills_in, infill_prompt, prompt_with_hole
from pyllamacpu.text.tokenizer import Tokenizer, to_bytes

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pyllamacpu.api.call_types import ChatKeywords, CompletionKeywords, Prompt
    from pyllamacpu.llama_cpp.llama_types import (
        ChatCompletion,
        ChatCompletionChunk,
        Completion,
        CompletionChunk,
    )
    from pyllamacpu.text.template import ChatTemplate

Answer = Response | Iterator[Response]


class Completions(Tokens):
    """Text in, text out, in the shapes of the OpenAI API."""

    model_path: str
    chat_handler: Callable[..., Any] | None = None
    chat_format: str | None
    spm_infill: bool = False
    verbose: bool = False
    _tokenizer_given: BaseLlamaTokenizer | None = None

    @property
    def template(self) -> ChatTemplate | None:
        """The chat template, or None for a file without a tokenizer."""
        return self._parts.template

    def tokenizer(self) -> LlamaTokenizer:
        """The tokenizer of the file with llama-cpp-python's method names."""
        self._text()
        return LlamaTokenizer(self)

    @property
    def tokenizer_(self) -> BaseLlamaTokenizer:
        """The tokenizer that makes the ids: the one that was given, or that of the file."""
        return self._tokenizer_given or self.tokenizer()

    def _text(self) -> Tokenizer:
        if self.text_tokenizer is None:
            raise TokenizerError(
                f"{self.model_path}: this file has no tokenizer; use token ids: generate(), eval(), logits()"
            )
        return self.text_tokenizer

    # Text and ids

    def tokenize(self, text: bytes | str, add_bos: bool = True, special: bool = False) -> list[int]:
        """Token ids of UTF-8 text. With `special`, spellings of control tokens in it become those tokens."""
        if self._tokenizer_given is not None:
            raw = text.encode("utf-8", "ignore") if isinstance(text, str) else text
            return self._tokenizer_given.tokenize(raw, add_bos, special)
        return self._text().encode(text, add_special=add_bos, parse_special=special)

    def tokenize_all(
        self, texts: Iterable[bytes | str], add_bos: bool = True, special: bool = False
    ) -> list[list[int]]:
        """`tokenize` of each text, on all cores."""
        if is_overridden(self, Completions, "tokenize"):
            return [self.tokenize(text, add_bos, special) for text in texts]
        return self.tokenizer_.tokenize_all(texts, add_bos, special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """The bytes of token ids; control tokens are shown only if `special`. See
        `LlamaTokenizer.detokenize`.
        """
        return self.tokenizer_.detokenize(tokens, prev_tokens, special)

    def set_cache(self, cache: BaseLlamaCache | None) -> None:
        """Completions look up their prompt in `cache`, and put themselves there when they end; None: no
        cache. Earlier calls of this very object are reused without one.
        """
        has_items = hasattr(cache, "__getitem__") and hasattr(cache, "__setitem__")
        if cache is not None and (not has_items or isinstance(cache, Sequence)):
            raise OptionError(f"cache={cache!r:.80}: give a LlamaCache, or None")
        self.cache = cache

    def _look_up(self, ids: Sequence[int]) -> None:
        """Loads what the cache has of `ids`, if that is more than is at hand."""
        if self.cache is None:
            return
        try:
            state = self.cache[tuple(ids)]
        except KeyError:
            return
        if is_of_other_adapters(state.llama_state, self._session.sequence.adapters):
            return  # `set_adapters` was called since
        if self._logits_all and state.all_scores is None:
            return  # all its tokens would have to be evaluated again
        if common_prefix(state.tokens, tuple(ids)) > common_prefix(tuple(self._session.tokens), tuple(ids)):
            with suppress(ContextError):  # others have the room now: the prompt is read instead
                self.load_state(state.without_random_numbers())

    def _cached(self, ids: Sequence[int], events: Iterator[TextEvent]) -> Iterator[TextEvent]:
        """The events of an answer to `ids`, begun with what the cache has."""
        self._look_up(ids)
        yield from events

    def _store(self, state: LlamaState) -> None:
        """Puts what an answer left into the cache."""
        if self.cache is not None:
            self.cache[state.tokens] = state.without_random_numbers()

    # Generating text

    def stream(
        self,
        prompt_tokens: Sequence[int],
        options: SamplingOptions | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        on_prompt: Callable[[int, int], None] | None = None,
        logits_processors: Sequence[LogitsProcessor] = (),
        *,
        logprobs: int | None = None,
        stopping_criteria: Sequence[Callable[..., bool]] = (),
        end_tokens: Iterable[int] = (),
        stop_loops: bool = False,
        penalize_prompt: bool = True,
        grammar: Grammar | None = None,
        images: Sequence[Any] = (),
        ahead: int | None = STREAMED_AHEAD,
        n_said: int = 0,
    ) -> Iterator[TextEvent]:
        """The continuation of `prompt_tokens` as text events; the last has finish reason and statistics.

        `on_prompt(done, total)` is called while the prompt is read. `max_tokens` None: as many as the context
        holds. `stop_loops` ends an answer that repeats a passage again and again, with the reason "loop".
        `penalize_prompt`: penalties count the prompt's tokens too. `grammar`: the form that the answer must
        have; it ends with it. `images`: those that the prompt's placeholders, or its tokens for an image
        each, stand for, in any form that `logits` takes. `ahead`: events that may be made before they are
        asked for, while others wait for theirs; None: any number. `n_said`: how many of the prompt's last
        tokens began this answer, maybe ending inside a character or a stop string. The arguments are checked
        at once, the work begins with the first event.
        """
        if not isinstance(options, (SamplingOptions, type(None))):
            raise OptionError(f"options={options!r:.80}: give SamplingOptions")
        if on_prompt is not None and not callable(on_prompt):
            raise OptionError(f"on_prompt={on_prompt!r:.80}: give a function")
        for name, count in (("max_tokens", max_tokens), ("logprobs", logprobs), ("ahead", ahead)):
            token_count(name, count)
        prompt, held = self._placed(prompt_tokens, images)
        request = Request(
            prompt=prompt,
            images=held,
            sampling=options or SamplingOptions(),
            max_tokens=max_tokens,
            stop=stop_strings(stop),
            logprobs=logprobs,
            processors=as_functions("logits_processors", logits_processors),
            criteria=as_functions("stopping_criteria", stopping_criteria),
            end_tokens=frozenset(check_tokens(end_tokens, 1 << 31)),
            stop_loops=stop_loops,
            penalize_prompt=penalize_prompt,
            n_said=n_said,
            grammar=self.compiled(chosen_grammar(grammar)),
        )
        if not request.prompt:
            raise OptionError("the prompt is empty: give at least one token")
        token_limit(len(request.prompt), max_tokens, self.engine.n_ctx)
        TextDecoder(self.text_tokenizer, request.stop)
        return self._answer_events(request, on_prompt, ahead)

    def _answer_events(
        self, request: Request, on_prompt: Callable[[int, int], None] | None, ahead: int | None
    ) -> Iterator[TextEvent]:
        """From the scheduler, or a program's own methods; begun with what the cache has."""
        is_cached = self.cache is not None and not stand_for_images(request.prompt)
        save = self._store if is_cached else None
        if is_overridden(self, Tokens, "generate", "eval", "sample"):
            made = events_by_hand(self, request, save)
        else:
            made = self._events(request, on_prompt, ahead, save)
        events = self._log_timings(made)
        return self._cached(request.prompt, events) if is_cached else events

    def _log_timings(self, events: Iterator[TextEvent]) -> Iterator[TextEvent]:
        """The events, with the timings on stderr at the end if the model is verbose."""
        for event in events:
            if self.verbose and event.stats is not None:
                print(responses.timings_text(event.stats), file=sys.stderr)
            yield event

    @overload
    def create_completion(
        self, prompt: Prompt, *more: Any, stream: Literal[False] = False, **given: Unpack[CompletionKeywords]
    ) -> Completion: ...
    @overload
    def create_completion(
        self, prompt: Prompt, *more: Any, stream: Literal[True], **given: Unpack[CompletionKeywords]
    ) -> Iterator[CompletionChunk]: ...
    @overload
    def create_completion(
        self, prompt: Prompt, *more: Any, stream: bool, **given: Unpack[CompletionKeywords]
    ) -> Completion | Iterator[CompletionChunk]: ...
    @answering(
        "prompt suffix max_tokens temperature top_p min_p typical_p logprobs echo stop "
        "frequency_penalty presence_penalty repeat_penalty top_k stream seed tfs_z mirostat_mode "
        "mirostat_tau mirostat_eta model stopping_criteria logits_processor grammar logit_bias"
    )
    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        *,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = None,
        stream: bool = False,
        seed: int | None = None,
        tfs_z: float = 1.0,
        model: str | None = None,
        stopping_criteria: Any = None,
        logits_processor: Any = None,
        grammar: Any = None,
        **sampling: Unpack[SamplingKeywords],
    ) -> Any:
        """Continues a prompt: an OpenAI completion as a dict, or with `stream` an iterator of its chunks.

        Args:
            prompt: text (BOS is put before it where the model wants it; "" is just BOS) or token ids (as they
                are).
            suffix: the text behind the hole, for models that fill in the middle; for others it is only
                appended.
            max_tokens: None, 0 and less mean as many as the context holds.
            logprobs: give the log-probability of each token, and this many alternatives.
            echo, stop: begin the answer with the prompt; strings that end it and are not part of it.
            grammar: a `LlamaGrammar` that the answer must fit.
            seed: the same seed gives the same tokens; None draws one from the seed of the object.
            sampling: any other field of `SamplingOptions`, such as dry_multiplier or samplers.

        Raises ContextError for a prompt that leaves no room for an answer, OptionError, TokenizerError.
        """
        warn_retired(tfs_z)
        options = self._options("create_completion", sampling, self._next_seed() if seed is None else seed)
        n_top = None if logprobs is None else token_count("logprobs", logprobs)
        ids, appended = self._completion_prompt(prompt, suffix)
        filled = fills_in(self._text(), prompt, suffix)  # the text of `ids` is not that of the prompt
        text = prompt if isinstance(prompt, str) else self._text().decode(prompt if filled else ids)
        plan = self._completion_plan(model, text, ids, echo and not filled, n_top)
        plan = replace(plan, before=text if echo else "", after=appended)
        if plan.logprobs is not None and plan.first_logprobs:
            plan.logprobs.echo(text, plan.first_logprobs, spelled=isinstance(prompt, str))
        events = self.stream(
            ids,
            options,
            token_count("max_tokens", max_tokens) or None,
            stop_strings(stop),
            penalize_prompt=False,
            logits_processors=as_functions("logits_processor", logits_processor),
            logprobs=n_top,
            stopping_criteria=as_functions("stopping_criteria", stopping_criteria),
            grammar=chosen_grammar(grammar),
            ahead=STREAMED_AHEAD if stream else None,
        )
        return self._answer(plan, events, stream, responses.whole_completion, responses.completion_chunks)

    @overload
    def __call__(
        self, prompt: Prompt, *more: Any, stream: Literal[False] = False, **given: Unpack[CompletionKeywords]
    ) -> Completion: ...
    @overload
    def __call__(
        self, prompt: Prompt, *more: Any, stream: Literal[True], **given: Unpack[CompletionKeywords]
    ) -> Iterator[CompletionChunk]: ...
    @overload
    def __call__(
        self, prompt: Prompt, *more: Any, stream: bool, **given: Unpack[CompletionKeywords]
    ) -> Completion | Iterator[CompletionChunk]: ...
    def __call__(self, prompt: str | Sequence[int], *args: Any, **kwargs: Any) -> Any:
        """The same as `create_completion`."""
        return self.create_completion(prompt, *args, **kwargs)

    @overload
    def create_chat_completion(
        self,
        messages: Sequence[Any],
        *more: Any,
        stream: Literal[False] = False,
        **given: Unpack[ChatKeywords],
    ) -> ChatCompletion: ...
    @overload
    def create_chat_completion(
        self, messages: Sequence[Any], *more: Any, stream: Literal[True], **given: Unpack[ChatKeywords]
    ) -> Iterator[ChatCompletionChunk]: ...
    @overload
    def create_chat_completion(
        self, messages: Sequence[Any], *more: Any, stream: bool, **given: Unpack[ChatKeywords]
    ) -> ChatCompletion | Iterator[ChatCompletionChunk]: ...
    @answering(
        "messages functions function_call tools tool_choice temperature top_p top_k min_p typical_p "
        "stream stop seed response_format max_tokens presence_penalty frequency_penalty "
        "repeat_penalty tfs_z mirostat_mode mirostat_tau mirostat_eta model logits_processor grammar "
        "logit_bias logprobs top_logprobs",
        temperature=0.2,
    )
    def create_chat_completion(
        self,
        messages: Sequence[Any],
        functions: Sequence[Any] | None = None,
        function_call: Any = None,
        tools: Sequence[Any] | None = None,
        tool_choice: Any = None,
        *,
        stream: bool = False,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        response_format: Any = None,
        max_tokens: int | None = None,
        tfs_z: float = 1.0,
        model: str | None = None,
        logits_processor: Any = None,
        grammar: Any = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        parallel_tool_calls: bool | None = None,
        **sampling: Unpack[SamplingKeywords],
    ) -> Any:
        """Answers a conversation: an OpenAI chat completion, or with `stream` an iterator of its chunks.

        `tools` are shown by the chat template; calls come as `tool_calls` (for `functions`: `function_call`),
        those of `tool_choice` for certain, one of them unless `parallel_tool_calls`; False: never more. The
        rest is `create_completion`'s. Raises TemplateError, and OptionError for what cannot be enforced.
        """
        given = handler_arguments(locals())
        if handler := self._registered_handler():
            return handler(llama=self, **given)
        from pyllamacpu.api.tool_answers import with_calls
        from pyllamacpu.api.tools import checked_offer

        form = chosen_grammar(grammar, response_format)
        warn_retired(tfs_z)
        seed = self._next_seed() if seed is None else seed
        options = self._options("create_chat_completion", sampling, seed)
        tokenizer, template = self._text(), self._chat_template()
        offer = checked_offer(form, given).written_in(template)
        ids, images = self.chat_prompt(tokenizer, template, messages, offer)
        ends, n_top = chat_ends(stop, template), listed_tokens(logprobs, top_logprobs)
        if is_overridden(self, Completions, "create_completion"):
            own = {"seed": seed, "model": model, "logprobs": n_top, "logits_processor": logits_processor}
            more = {"stop": ends, "max_tokens": max_tokens, "grammar": offer.form or form, "stream": stream}
            return with_calls(self._chat_by_completion(ids, **own, **more, **sampling), offer)
        events = self.stream(
            ids,
            options,
            token_count("max_tokens", max_tokens) or None,
            ends,
            penalize_prompt=False,
            logits_processors=as_functions("logits_processor", logits_processor),
            logprobs=n_top,
            end_tokens=stop_token_ids(tokenizer, template),
            grammar=offer.form or form,
            images=images,
            ahead=STREAMED_AHEAD if stream else None,
        )
        return with_calls(self._chat_answer(model, ids, n_top, events, stream), offer)

    def _registered_handler(self) -> Callable[..., Any] | None:
        from pyllamacpu.api.chat_handlers import registered_handler  # only for chats

        return self.chat_handler or registered_handler(self.chat_format)

    def _chat_by_completion(self, ids: Sequence[int], **options: Any) -> Answer:
        """A chat's answer by a program's own `create_completion`."""
        refuse_images(ids, "create_completion")
        answer = self.create_completion(ids, **options)
        if isinstance(answer, dict):
            return responses.chat_of_completion(answer)
        return responses.chat_of_chunks(answer)

    def create_chat_completion_openai_v1(self, *args: Any, **kwargs: Any) -> Any:
        """`create_chat_completion` as the objects of the openai package, which must be installed: a
        ChatCompletion, or an iterator of ChatCompletionChunks.
        """
        try:
            from openai.types.chat import ChatCompletion, ChatCompletionChunk
        except ImportError:
            raise ImportError("create_chat_completion_openai_v1 needs: pip install openai") from None
        answer = self.create_chat_completion(*args, **kwargs)
        if isinstance(answer, dict):
            return ChatCompletion(**answer)
        return (ChatCompletionChunk(**chunk) for chunk in answer)

    def _answer(
        self,
        plan: Plan,
        events: Iterator[TextEvent],
        stream: bool,
        whole: Callable[[Plan, Iterator[TextEvent]], Response],
        chunks: Callable[[Plan, Iterator[TextEvent]], Iterator[Response]],
    ) -> Answer:
        """The whole answer, or its chunks as they come."""
        return chunks(plan, events) if stream else whole(plan, events)

    def _chat_answer(
        self,
        model: str | None,
        ids: Sequence[int],
        n_top: int | None,
        events: Iterator[TextEvent],
        stream: bool,
    ) -> Answer:
        plan = self._completion_plan(model, "", ids, False, n_top)
        return self._answer(plan, events, stream, responses.whole_chat, responses.chat_chunks)

    def _completion_plan(
        self, model: str | None, text: str, ids: Sequence[int], lists_prompt: bool, n_top: int | None
    ) -> Plan:
        return Plan(
            heading=Heading(model or self.model_path),
            n_prompt=len(ids),
            logprobs=None if n_top is None else LogprobWriter(self._text(), 0 if lists_prompt else len(text)),
            first_logprobs=self._prompt_logprobs(ids, n_top) if lists_prompt and n_top is not None else (),
        )

    def _completion_prompt(self, prompt: str | Sequence[int], suffix: str | None) -> tuple[list[int], str]:
        """(token ids, text to append to the answer)."""
        tokenizer = self._text()
        if not isinstance(suffix, (str, type(None))):
            raise OptionError(f"suffix={suffix!r:.80}: give a text")
        if suffix is None:
            hole = prompt_with_hole(tokenizer, prompt, self.spm_infill) if isinstance(prompt, str) else None
            if hole is not None:
                return hole, ""
            return text_prompt(tokenizer, self._ids_of(prompt), self._checked_ids), ""
        before = prompt if isinstance(prompt, str) else self._checked_ids(prompt)
        ids = infill_prompt(tokenizer, before, suffix, self.spm_infill)
        if ids is not None:
            return ids, ""
        warn_once("suffix", "this model cannot fill in the middle: the suffix is only appended to the answer")
        return text_prompt(tokenizer, self._ids_of(prompt), self._checked_ids), suffix

    def _ids_of(self, prompt: str | Sequence[int]) -> Sequence[int]:
        """Text by `tokenize`, which may be a subclass's own; ids as they are."""
        return self.tokenize(to_bytes(prompt), special=True) if isinstance(prompt, str) else prompt

    def _chat_template(self) -> ChatTemplate:
        self._busy.check()
        template = self.template
        if template is None:
            raise TokenizerError(f"{self.model_path}: this file has no tokenizer, so there is no chat")
        if template.warning:
            sentence = f"{self.model_path}: {template.warning}"
            warn_once(sentence, sentence)
        return template

    def _prompt_logprobs(self, ids: Sequence[int], n: int) -> tuple[TokenLogprobs | int, ...]:
        """Entries for the prompt's tokens but BOS; the first token has no logprobs."""
        rows = self.logits(ids)
        shown = range(1 if ids[0] == self._text().bos else 0, len(ids))
        return tuple(ids[i] if i == shown.start else top_logprobs(rows[i - 1], ids[i], n) for i in shown)
