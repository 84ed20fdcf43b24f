"""`AsyncLlama`: answers are those of `Llama`, side by side; streams end when they are left.

Covers api/async_llama.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import greedy, llm, path, text_of  # noqa: F401

from pyllamacpu import AsyncLlama, Llama
from pyllamacpu.errors import ModelError, OptionError

PROMPTS = ("hello", "the world", "a", "the")


def opened(path: Path, **options: Any) -> AsyncLlama:
    return AsyncLlama(str(path), **{"n_ctx": 256, "n_threads": 1, "kv_type": "f32", **options})


async def streamed(model: AsyncLlama, prompt: str) -> str:
    stream = await model.create_completion(prompt, max_tokens=25, temperature=0.0, stream=True)
    return "".join([text_of(chunk) async for chunk in stream])


async def whole(model: AsyncLlama, prompt: str) -> str:
    return text_of(await model(prompt, max_tokens=25, temperature=0.0))


async def until_idle(model: AsyncLlama) -> None:
    end = time.monotonic() + 30
    while model.llama._driver._scheduler.unfinished():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def test_answers_side_by_side(llm: Llama, path: Path) -> None:
    expected = [greedy(llm, prompt, 25) for prompt in PROMPTS]

    async def main() -> list[str]:
        async with opened(path) as model:
            calls = [call(model, prompt) for call in (streamed, whole) for prompt in PROMPTS]
            return await asyncio.gather(*calls)

    assert asyncio.run(main()) == expected * 2


def test_chats_and_embeddings(llm: Llama, path: Path) -> None:
    messages: Any = [{"role": "user", "content": "hello"}]
    expected = llm.create_chat_completion(messages, max_tokens=8, temperature=0)

    async def main() -> tuple[Any, list[Any], Any]:
        async with opened(path) as model:
            answer = await model.create_chat_completion(messages, max_tokens=8, temperature=0)
            stream = await model.create_chat_completion(messages, max_tokens=8, temperature=0, stream=True)
            return answer, [chunk async for chunk in stream], await model.embed("hello")

    answer, chunks, vector = asyncio.run(main())
    content = expected["choices"][0]["message"]["content"]
    assert answer["choices"][0]["message"]["content"] == content
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == content
    assert vector == llm.embed("hello")


def test_errors_come_with_the_await(path: Path) -> None:
    async def main() -> None:
        async with opened(path) as model:
            for stream in (False, True):
                with pytest.raises(OptionError):
                    await model.create_completion("a", temperature="hot", stream=stream)
        with pytest.raises(ModelError):
            await model.create_completion("a")

    asyncio.run(main())


@pytest.mark.parametrize("cancel", [False, True])
def test_a_stream_that_is_left_ends_its_request(llm: Llama, path: Path, cancel: bool) -> None:
    async def main() -> str:
        async with opened(path) as model:
            stream = await model.create_completion(
                "hello", max_tokens=240, temperature=0.0, stream=True, logit_bias={2: -100.0}
            )
            await anext_of(stream)
            assert model.llama._driver._scheduler.unfinished()
            if cancel:
                task = asyncio.ensure_future(anext_of(stream))
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                await stream.aclose()
            await until_idle(model)
            return await whole(model, "hello")

    assert asyncio.run(main()) == greedy(llm, "hello", 25)


WHOLE: dict[str, Any] = {
    "create_completion": lambda model: model(
        "hello", max_tokens=240, temperature=0.0, logit_bias={2: -100.0}
    ),
    "create_chat_completion": lambda model: model.create_chat_completion(
        [{"role": "user", "content": "hello"}], max_tokens=200, temperature=0.0, logit_bias={2: -100.0}
    ),
    "embed": lambda model: model.embed(["hello " * 40] * 60),
}
AT_LEAST = {"create_completion": 240, "create_chat_completion": 200, "embed": 2400}  # tokens, to the end


@pytest.mark.parametrize("call", WHOLE)
@pytest.mark.parametrize("seconds", [0.0, 0.03])
def test_an_await_that_is_cancelled_ends_its_request(
    llm: Llama, path: Path, call: str, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> tuple[int, str]:
        async with opened(path) as model:
            task = asyncio.ensure_future(WHOLE[call](model))
            await asyncio.sleep(0)
            while seconds and not model.llama._driver._scheduler.n_evaluated:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until_idle(model)
            return model.llama._driver.n_evaluated, await whole(model, "hello")

    n_evaluated, answer = asyncio.run(main())
    assert n_evaluated < AT_LEAST[call]
    assert answer == greedy(llm, "hello", 25)
    assert not caplog.records


def test_a_timeout_ends_the_request(path: Path) -> None:
    async def main() -> None:
        async with opened(path) as model:
            others = [asyncio.ensure_future(whole(model, prompt)) for prompt in PROMPTS]
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(WHOLE["create_completion"](model), 0.01)
            await asyncio.gather(*others)
            await until_idle(model)

    asyncio.run(main())


def test_a_stream_outlives_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that is open when the model is closed: its next piece is an error, its end is quiet."""

    async def main() -> None:
        async with opened(path) as model:
            stream, other = [
                await model.create_completion("hello", max_tokens=200, stream=True) for _ in range(2)
            ]
            await anext_of(stream)
            await anext_of(other)
        with pytest.raises(ModelError):
            await anext_of(stream)
        await other.aclose()

    asyncio.run(main())
    assert not caplog.records


async def anext_of(stream: Any) -> Any:
    return await stream.__anext__()
