"""The same greedy answers alone, at once, from the cache, and after kill -9 and a restart: text and bits of
the logprobs; and what the caches save of a long prompt's time to its first token.

    python benchmarks/same_answers.py --model model.gguf
    python benchmarks/same_answers.py --model model.gguf --answers 4 --tokens 12 --long 1000

Alone: each of a `Llama` object of its own, with nothing cached. The others come from `pyllamacpu serve
--cache-disk`, whose process is killed in the middle of a last round, and started again over the same folder.
All prompts begin alike. The exit code is 1 when an answer differs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compare import find_model
from server_process import Server, free_port, wait_healthy
from streaming_client import Client, ServerFailure

from pyllamacpu import Llama

WAIT = 600.0  # seconds for an answer
RULES = "Answer the question of the person in a few words. Be kind, be brief, and never make up a fact. " * 6
TOPICS = ("rivers", "kings", "numbers", "colours", "birds", "islands", "poems", "machines")
PLACES = ("Europe", "Asia", "Africa", "a garden")


@dataclass(frozen=True)
class Question:
    prompt: str | Sequence[int]
    max_tokens: int

    def fields(self) -> dict[str, Any]:
        greedy = {"temperature": 0, "repeat_penalty": 1.0}  # whatever the model or the interface would take
        return {"prompt": self.prompt, "max_tokens": self.max_tokens, "logprobs": 3, **greedy}


def questions(n: int, max_tokens: int) -> list[Question]:
    """`n` prompts that begin alike."""
    texts = [
        f"{RULES}\nQuestion: name three {topic} of {place}.\nAnswer:" for topic in TOPICS for place in PLACES
    ]
    return [Question(f"{texts[i % len(texts)]}{' ' * (i // len(texts))}", max_tokens) for i in range(n)]


def comparable(answer: Any) -> tuple[Any, ...]:
    """What must be equal."""
    (choice,) = answer["choices"]
    found = choice["logprobs"]
    return choice["text"], choice["finish_reason"], found["token_logprobs"], found["top_logprobs"]


def cached(answer: Any) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def alone(model: Path, asked: Sequence[Question], n_ctx: int, n_threads: int) -> list[Any]:
    found = []
    for question in asked:
        with Llama(str(model), n_ctx=n_ctx, n_threads=n_threads) as llm:
            found.append(llm.create_completion(**question.fields()))
    return found


def ask(port: int, question: Question) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        json.dumps(question.fields()).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=WAIT) as reply:
        return json.load(reply)


def at_once(port: int, asked: Sequence[Question]) -> list[Any]:
    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(lambda question: ask(port, question), asked))


@contextmanager
def serving(model: Path, folder: Path, n_ctx: int, n_threads: int) -> Iterator[tuple[Server, int]]:
    """A server over a folder of pages, and its port; killed at the end if it still runs."""
    port = free_port()
    options = ["-c", str(n_ctx), "-np", "32", "-t", str(n_threads), "--port", str(port)]
    command = [sys.executable, "-m", "pyllamacpu", "serve", "-m", str(model), "--cache-disk", str(folder)]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    process = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL, env=environment)
    server = Server("pyllamacpu", process, Client(port))
    try:
        wait_healthy(server)
        yield server, port
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def wait_written(port: int, n_pages: int) -> None:
    """Until the server has written so many pages, and writes no more."""
    last, same = -1.0, 0
    while same < 5:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT) as reply:
            lines = reply.read().decode().splitlines()
        name = "pyllamacpu_disk_cache_written_pages_total "
        now = next(float(line.removeprefix(name)) for line in lines if line.startswith(name))
        same = same + 1 if now == last and now >= n_pages else 0
        last = now
        time.sleep(0.1)


def compare(name: str, expected: Sequence[Any], found: Sequence[Any]) -> bool:
    equal = sum(comparable(a) == comparable(b) for a, b in zip(expected, found, strict=True))
    from_cache = "" if expected is found else f", {sum(map(cached, found))} prompt tokens from the cache"
    print(f"{name}: {equal} of {len(expected)} equal{from_cache}", flush=True)
    return equal == len(expected)


def check_answers(model: Path, given: argparse.Namespace, folder: Path) -> bool:
    asked = questions(given.answers, given.tokens)
    expected = alone(model, asked, given.ctx_size, given.threads)
    results = []
    with serving(model, folder, given.ctx_size, given.threads) as (server, port):
        results.append(compare("at once", expected, at_once(port, asked)))
        results.append(compare("from the cache", expected, [ask(port, question) for question in asked]))
        wait_written(port, max(answer["usage"]["prompt_tokens"] for answer in expected) // 32)
        with ThreadPoolExecutor(len(asked)) as pool:  # these are in the middle when the process is killed
            lost = [
                pool.submit(ask, port, Question([7 + i] * 300, given.ctx_size - 300))
                for i in range(len(asked))
            ]
            time.sleep(0.2)
            server.process.kill()
            print(f"killed with {sum(future.exception() is not None for future in lost)} answers in work")
    with serving(model, folder, given.ctx_size, given.threads) as (_, port):
        found = at_once(port, asked)
        results.append(compare("after a restart", expected, found))
        results.append(all(cached(answer) > 0 for answer in found))
    return all(results)


async def first_token(port: int, prompt: Sequence[int]) -> float:
    """Seconds."""
    return (await Client(port).stream(prompt, 2)).first


def long_prompts(model: Path, given: argparse.Namespace, folder: Path) -> None:
    prompt = [random.Random(1).randrange(1000, 20000) for _ in range(given.long)]
    seconds = {}
    options = (model, folder, given.long + 64, given.threads)
    with serving(*options) as (_, port):
        asyncio.run(first_token(port, prompt[:40][::-1]))  # nothing is new to the process any more
        seconds["computed"] = asyncio.run(first_token(port, prompt))
        seconds["from memory"] = asyncio.run(first_token(port, prompt))
        wait_written(port, len(prompt) // 32)
    with serving(*options) as (_, port):
        asyncio.run(first_token(port, prompt[:40][::-1]))
        seconds["from the disk, after a restart"] = asyncio.run(first_token(port, prompt))
    for name, value in seconds.items():
        print(f"first token behind {given.long} tokens, {name}: {1000 * value:.0f} ms")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a file, or SHAPE:TYPE of synthetic.py")
    parser.add_argument("--answers", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48, help="of an answer")
    parser.add_argument("--long", type=int, default=4096, help="tokens of the long prompt; 0: none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ctx-size", type=int, default=1024)
    given = parser.parse_args()
    model = find_model(given.model)
    with tempfile.TemporaryDirectory() as scratch:
        same = given.answers == 0 or check_answers(model, given, Path(scratch) / "answers")
        if given.long:
            long_prompts(model, given, Path(scratch) / "long")
    return 0 if same else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ServerFailure as error:
        sys.exit(str(error))
