"""A vision tower stops when nobody waits for its image any more. Covers `Cancellation` of engine/driver.py,
api/async_llama.py, safety/shield.py.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from llama4_vision_models import llama4_vision, with_words
from test_images_in_chats import PICTURE, asked
from test_llama4_guard import GUARD

from pyllamacpu import AsyncLlama
from pyllamacpu.engine import tower
from pyllamacpu.engine.tower import Tower
from pyllamacpu.errors import Abandoned
from pyllamacpu.safety.shield import Conversation, Shield, ShieldOptions

__all__ = ["llama4_vision"]


class Runs:
    """Of towers, made slow: whether one began, and whether one ended because nobody waited."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began, self.ended = threading.Event(), threading.Event()
        run = Tower._run

        def noted(tower: Tower, *arguments: Any) -> Any:
            self.began.set()
            try:
                return run(tower, *arguments)
            except Abandoned:
                self.ended.set()
                raise

        monkeypatch.setattr(tower, "_SLICE_OPERATIONS", 1)
        monkeypatch.setattr(tower, "_PAUSE", 0.5)
        monkeypatch.setattr(Tower, "_run", noted)

    async def cancelled(self, task: asyncio.Task[Any]) -> None:
        """Cancels it while a tower is at work, and waits until that stops."""
        await asyncio.to_thread(self.began.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(self.ended.wait, 60)
        assert self.ended.is_set()


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_cancelled(
    stream: bool, llama4_vision: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(monkeypatch)

    async def answered(llm: AsyncLlama) -> None:
        found = await llm.create_chat_completion(asked(PICTURE), max_tokens=2, stream=stream)
        if stream:
            async for _ in found:
                pass

    async def main() -> None:
        path = with_words(llama4_vision, tmp_path)
        async with AsyncLlama(str(path), n_ctx=256, n_threads=1, verbose=False) as llm:
            await runs.cancelled(asyncio.create_task(answered(llm)))
            monkeypatch.undo()
            await answered(llm)  # its thread and the tower are free again

    asyncio.run(main())


def test_a_guard_that_judges_an_image(
    llama4_vision: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = with_words(llama4_vision, tmp_path, GUARD)
    shield = Shield(ShieldOptions(guard=str(path), threshold=1 - 1e-9))
    shield.load()
    runs = Runs(monkeypatch)

    async def main() -> None:
        judged = shield.judge_prompt(Conversation(asked(PICTURE)))
        await runs.cancelled(asyncio.create_task(judged))  # type: ignore[arg-type]
        monkeypatch.undo()
        assert await shield.judge_prompt(Conversation(asked(PICTURE))) == ()

    asyncio.run(main())
    shield.close()
