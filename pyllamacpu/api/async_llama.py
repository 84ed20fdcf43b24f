"""`AsyncLlama`: the calls of `Llama` for asyncio, many at once in one batch."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from pyllamacpu.api.busy import closed_error
from pyllamacpu.api.llama import Llama
from pyllamacpu.api.responses import Response
from pyllamacpu.engine.driver import Cancellation

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pyllamacpu.api.call_types import ChatKeywords, CompletionKeywords, Prompt
    from pyllamacpu.llama_cpp.llama_types import (
        ChatCompletion,
        ChatCompletionChunk,
        Completion,
        CompletionChunk,
    )

Result = TypeVar("Result")

_THREADS = 32  # calls that wait for their next piece at a time; more of them take turns
_END = object()


class _Chunks:
    """An iterator that several threads use, one at a time; closing it ends its request."""

    def __init__(self, call: Callable[[], Iterator[Response]]) -> None:
        self._call = call
        self._lock = threading.Lock()
        self._iterator: Any = None
        self._closed = False

    def open(self) -> None:
        """Raises what the call raises."""
        with self._lock:
            if not self._closed:
                self._iterator = self._call()

    def next(self) -> Any:
        with self._lock:
            return _END if self._closed else next(self._iterator, _END)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._iterator is not None:
                self._iterator.close()


class AsyncLlama:
    """A `Llama` whose calls are awaited: they run in threads, and as one batch.

        async with AsyncLlama("model.gguf") as llm:
            answer = await llm.create_chat_completion(messages)
            async for chunk in await llm.create_chat_completion(messages, stream=True):
                ...

    Arguments are those of `Llama`, which is loaded by the constructor and found as `llama`. An `await` that
    is cancelled ends its request before the next step, and so does a stream that is cancelled or closed
    (`aclose`).
    """

    def __init__(self, model_path: str | os.PathLike[str], **options: Any) -> None:
        self.llama = Llama(model_path, **options)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="AsyncLlama")

    @overload
    async def create_completion(
        self, prompt: Prompt, *more: Any, stream: Literal[False] = False, **given: Unpack[CompletionKeywords]
    ) -> Completion: ...
    @overload
    async def create_completion(
        self, prompt: Prompt, *more: Any, stream: Literal[True], **given: Unpack[CompletionKeywords]
    ) -> AsyncGenerator[CompletionChunk, None]: ...
    @overload
    async def create_completion(
        self, prompt: Prompt, *more: Any, stream: bool, **given: Unpack[CompletionKeywords]
    ) -> Completion | AsyncGenerator[CompletionChunk, None]: ...
    async def create_completion(self, *args: Any, **options: Any) -> Any:
        """`Llama.create_completion`; with `stream` an asynchronous generator of chunks."""
        return await self._answer(self.llama.create_completion, *args, **options)

    @overload
    async def create_chat_completion(
        self,
        messages: Sequence[Any],
        *more: Any,
        stream: Literal[False] = False,
        **given: Unpack[ChatKeywords],
    ) -> ChatCompletion: ...
    @overload
    async def create_chat_completion(
        self, messages: Sequence[Any], *more: Any, stream: Literal[True], **given: Unpack[ChatKeywords]
    ) -> AsyncGenerator[ChatCompletionChunk, None]: ...
    @overload
    async def create_chat_completion(
        self, messages: Sequence[Any], *more: Any, stream: bool, **given: Unpack[ChatKeywords]
    ) -> ChatCompletion | AsyncGenerator[ChatCompletionChunk, None]: ...
    async def create_chat_completion(self, *args: Any, **options: Any) -> Any:
        """`Llama.create_chat_completion`; with `stream` an asynchronous generator of chunks."""
        return await self._answer(self.llama.create_chat_completion, *args, **options)

    __call__ = create_completion

    async def create_embedding(self, input: str | Sequence[str], model: str | None = None) -> Response:
        return await self._run(partial(self.llama.create_embedding, input, model))

    async def embed(self, *args: Any, **options: Any) -> Any:
        return await self._run(partial(self.llama.embed, *args, **options))

    async def close(self) -> None:
        """Frees the model when the calls that run are over."""
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)
        self.llama.close()

    async def __aenter__(self) -> AsyncLlama:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, function: Callable[[], Result]) -> Result:
        """Runs it in a thread; its requests end when this is cancelled."""
        cancellation = Cancellation()

        def run() -> Result:
            with cancellation:
                return function()

        try:
            future = asyncio.get_running_loop().run_in_executor(self._threads, run)
        except RuntimeError as error:  # the threads have been shut down
            raise closed_error() from error
        try:
            return await future
        except asyncio.CancelledError:
            cancellation.cancel()
            raise

    def _let_go(self, chunks: _Chunks) -> None:
        """Closes a stream; not here, as another thread may be in its step."""
        try:
            self._threads.submit(chunks.close)
        except RuntimeError:  # no thread is left
            chunks.close()

    async def _answer(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        call = partial(method, *args, **options)
        if not options.get("stream"):
            return await self._run(call)
        chunks = _Chunks(call)
        try:
            await self._run(chunks.open)
        except BaseException:
            self._let_go(chunks)
            raise
        return self._pieces(chunks)

    async def _pieces(self, chunks: _Chunks) -> AsyncGenerator[Response, None]:
        try:
            while (chunk := await self._run(chunks.next)) is not _END:
                yield chunk
        finally:
            self._let_go(chunks)
