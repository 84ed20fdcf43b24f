"""The `Llama` class: threads, interrupts, calls inside calls, and models from the hub."""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import os
import signal
import threading
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_llama import greedy, llm, nothing_was_warned_of, path, text_of  # noqa: F401
from tiny_model import BOS, EOS

from pyllamacpu import Llama
from pyllamacpu.errors import PyllamacpuError, StoreError

# Threads, interrupts, calls inside calls


def test_streams_that_alternate_do_not_disturb_each_other(llm: Llama) -> None:
    expected = {prompt: greedy(llm, prompt, 25) for prompt in ("hello", "the world", "a")}
    streams = {
        prompt: llm(prompt, max_tokens=25, temperature=0.0, stream=True) for prompt in ("hello", "the world")
    }
    texts = dict.fromkeys(streams, "")
    for first, second in zip(*streams.values(), strict=False):
        texts["hello"] += text_of(first)
        texts["the world"] += text_of(second)
        assert greedy(llm, "a", 25) == expected["a"]
    for prompt, stream in streams.items():
        texts[prompt] += "".join(map(text_of, stream))
    assert texts == {prompt: expected[prompt] for prompt in texts}


def test_calls_inside_a_generator(llm: Llama) -> None:
    expected = list(islice(llm.generate([BOS, 9], temp=0.0), 8))
    got = []
    for token in islice(llm.generate([BOS, 9], temp=0.0), 8):
        got.append(token)
        llm.reset()
        llm.eval([7, 8])
        assert llm.n_tokens == 2
    assert got == expected
    assert llm.n_tokens == 2


def test_a_stream_that_is_left_keeps_no_pages_of_its_own(llm: Llama) -> None:
    for _ in range(20):
        for _chunk in llm("hello", max_tokens=20, stream=True):
            break
    assert llm.n_tokens > 0
    cache, prefixes = llm.engine.cache, llm._driver.prefixes
    assert cache.pages_in_use <= len(prefixes) + 1  # that of the session
    prefixes.clear()
    assert cache.pages_in_use == 1


def test_calls_from_threads_run_side_by_side(llm: Llama) -> None:
    prompts = ["hello", "the world", "a", "answer"]
    expected = {prompt: greedy(llm, prompt, 20) for prompt in prompts}
    scheduler = llm._driver._scheduler
    n_steps = 6 * scheduler.n_steps  # of all calls one after the other
    before = scheduler.n_steps
    found: list[tuple[str, str]] = []
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(6):
                prompt = prompts[(number + i) % len(prompts)]
                if i % 2:
                    chunks = llm(prompt, max_tokens=20, temperature=0.0, stream=True)
                    found.append((prompt, "".join(map(text_of, chunks))))
                else:
                    found.append((prompt, greedy(llm, prompt, 20)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len(found) == 24
    assert all(text == expected[prompt] for prompt, text in found)
    assert scheduler.n_steps - before < n_steps  # steps were shared


@pytest.mark.skipif(os.name == "nt", reason="raises SIGINT in the process")
def test_an_interrupt_comes_out_and_the_object_stays_usable(llm: Llama) -> None:
    expected = greedy(llm, "hello", 20)

    def interrupt(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if len(ids) == 4:
            signal.raise_signal(signal.SIGINT)
        return scores

    with pytest.raises(KeyboardInterrupt):
        llm("hello", max_tokens=20, logits_processor=interrupt, logit_bias={EOS: -np.inf})
    with pytest.raises(KeyboardInterrupt):
        list(llm("hello", logits_processor=[interrupt], stream=True, logit_bias={EOS: -np.inf}))
    assert greedy(llm, "hello", 20) == expected


def test_an_error_in_a_processor_leaves_the_object_usable(llm: Llama) -> None:
    def fail(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError

    expected = greedy(llm, "hello")
    with pytest.raises(ZeroDivisionError):
        llm("hello", logits_processor=fail)
    with pytest.raises(PyllamacpuError):
        llm("hello", logits_processor=lambda ids, scores: scores[:5])
    assert greedy(llm, "hello") == expected


def test_verbose_writes_timings_to_stderr(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Llama(str(path), verbose=True) as llm:
        llm("hello", max_tokens=2)
    out, err = capsys.readouterr()
    assert out == ""
    assert "tokens/s" in err


# The hub


class FakeHub:
    """Stands for the hub's library: a list of files, and downloads into a folder."""

    def __init__(self, folder: Path, files: list[str], model: Path) -> None:
        self.folder, self.files, self.model = folder, files, model
        self.fetched: list[tuple[str, str]] = []

    def list_repo_files(self, repo_id: str, **_: Any) -> list[str]:
        return self.files

    endpoint = "http://127.0.0.1:9"

    def get_hf_file_metadata(self, url: str) -> SimpleNamespace:
        return SimpleNamespace(etag=None, size=None)

    def hf_hub_download(self, repo_id: str, filename: str, **_: Any) -> str:
        self.fetched.append((repo_id, filename))
        target = self.folder / filename
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(self.model.read_bytes())
        return str(target)


@pytest.fixture
def hub(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    files = ["README.md", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "big/m-F16-00001-of-00002.gguf", "config.json"]
    fake = FakeHub(tmp_path, [*files, "big/m-F16-00002-of-00002.gguf"], path)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda *args, **kwargs: fake)
    monkeypatch.setattr("pyllamacpu.store.hub.reachable", lambda *args: True)
    return fake


def test_from_pretrained_by_pattern(hub: FakeHub) -> None:
    with Llama.from_pretrained("user/repo", "*Q8_0.gguf", additional_files=["config.*"], n_ctx=64) as llm:
        assert llm.n_ctx() == 64
        assert llm.model_path.endswith("m-Q8_0.gguf")
    assert hub.fetched == [("user/repo", "m-Q8_0.gguf"), ("user/repo", "config.json")]


def test_network_errors_are_typed(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(repo_id: str, **_: Any) -> list[str]:
        raise ConnectionError("no route\nand more")

    monkeypatch.setattr(hub, "list_repo_files", fail)
    with pytest.raises(StoreError, match=r"user/repo: cannot download \(ConnectionError: no route\)"):
        Llama.from_pretrained("user/repo", "*.gguf")


@pytest.mark.parametrize(("pattern", "said"), [("*.gguf", "3 files match"), ("nothing*", "no file matches")])
def test_patterns_that_mean_no_file_or_many(hub: FakeHub, pattern: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Llama.from_pretrained("user/repo", pattern)
    assert hub.fetched == []
