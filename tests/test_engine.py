"""The engine's promises: one call per step, memory as stated, idle when idle, interruptible; its errors.

Covers engine/batch.py.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyllamacpu.engine.engine import Engine, Entry, scratch_bytes
from pyllamacpu.errors import ContextError, ModelError, OptionError, TokenizerError
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.gguf.writer import GGUFWriter
from pyllamacpu.limits import memory_usable
from pyllamacpu.model.config import ModelConfig
from pyllamacpu.model.dequantize import dequantize

LOGITS = Path(__file__).parent / "fixtures" / "logits"
QUANTIZED = sorted(p for p in LOGITS.glob("*.gguf") if p.stem.startswith(("q", "iq", "tq", "mx")))


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine.open(LOGITS / "gqa4.gguf", n_ctx=1024, n_batch=64, n_threads=2)
    yield engine
    engine.close()


def test_pages_are_allocated_when_used_and_shared(engine: Engine) -> None:
    cache = engine.cache
    assert cache.pages_in_use == 0
    sequence = engine.sequence()
    engine.eval(sequence, [1] * 33)
    assert cache.pages_in_use == 2
    fork = sequence.fork()
    assert cache.pages_in_use == 2
    engine.eval(fork, [2])  # writes to the half-filled page: a copy
    assert cache.pages_in_use == 3
    sequence.truncate(10)
    assert cache.pages_in_use == 2  # the shared one and the fork's copy
    sequence.close()
    fork.close()
    assert cache.pages_in_use == 0


def test_pages_do_not_overlap_and_are_zeroed_again(engine: Engine) -> None:
    cache = engine.cache
    pages = [cache.new_page() for _ in range(100)]  # several slabs
    for i, page in enumerate(pages):
        np.frombuffer(cache.bytes_of(page), np.uint8)[:] = i
    assert all((np.frombuffer(cache.bytes_of(page), np.uint8) == i).all() for i, page in enumerate(pages))
    for page in pages[10:90]:
        cache.release(page)
    again = [cache.new_page() for _ in range(80)]
    assert len({*again, *pages[:10], *pages[90:]}) == 100
    assert not any(np.frombuffer(cache.bytes_of(page), np.uint8).any() for page in again)
    for page in [*again, *pages[:10], *pages[90:]]:
        cache.release(page)
    assert cache.pages_in_use == 0


@pytest.mark.parametrize("path", QUANTIZED, ids=lambda p: p.stem)
def test_packed_weights_are_at_most_a_twentieth_larger(path: Path) -> None:
    with GGUFFile.open(path) as file:
        matrices = {n: i for n, i in file.tensors.items() if len(i.shape) == 2 and i.shape[0] % 16 == 0}
        assert len(matrices) >= 7
        stated = sum(info.n_bytes for name, info in matrices.items() if name != "token_embd.weight")
        tied = "output.weight" not in file.tensors
        stated += file.tensors["token_embd.weight"].n_bytes if tied else 0
    engine = Engine.open(path, n_ctx=64, n_threads=1)
    assert stated * 0.99 <= engine.weight_bytes <= stated * 1.05
    engine.close()


def test_scratch_is_known_before_loading() -> None:
    path = LOGITS / "mixed_q4_k_m.gguf"
    engine = Engine.open(path, n_ctx=700, n_batch=100, n_threads=2, type_k="q8_0", type_v="f32")
    config = ModelConfig.from_metadata(engine.file.metadata, engine.file.tensors)
    stated = scratch_bytes(engine.file, config, 700, n_batch=100, n_threads=2, type_k="q8_0", type_v="f32")
    assert stated == engine.scratch_bytes > 0
    engine.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_resident_memory_is_weights_pages_and_scratch(starter_model: Path) -> None:
    """In a process of its own: what loading and running adds to the interpreter's memory."""
    code = f"""
        import os
        import numpy as np
        from pyllamacpu.engine.engine import Engine
        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        warm = Engine.open({str(LOGITS / "gqa4.gguf")!r}, n_ctx=64)
        warm.eval(warm.sequence(), [1, 2, 3])
        warm.close()
        before = resident()
        engine = Engine.open({str(starter_model)!r}, n_ctx=8192)
        sequence = engine.sequence()
        engine.eval(sequence, list(range(600)))
        pages = engine.cache.pages_in_use * engine.cache.page_bytes
        weights = sum(info.n_bytes for info in engine.file.tensors.values())
        print(resident() - before, weights, pages, engine.scratch_bytes)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=120
    )
    added, weights, pages, scratch = map(int, done.stdout.split())
    touched = (
        4 << 20
    )  # the file's header and the pages of looked-up embedding rows, which the system may drop
    assert added <= 1.05 * weights + pages + scratch + touched, (added, weights, pages, scratch)


def test_looked_up_rows_of_the_file_are_let_go(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[int] = []
    monkeypatch.setattr(engine.file, "release_all", lambda: released.append(n_tokens))
    sequence, n_tokens = engine.sequence(), 0
    while n_tokens < 1024:
        n_tokens += 4
        engine.eval(sequence, [1, 2, 3, 4])
        sequence.truncate(0)
    sequence.close()
    assert len(released) == 16
    assert all(b - a == 64 for a, b in pairwise(released))


def test_a_step_releases_the_gil(engine: Engine) -> None:
    counted, stop = 0, threading.Event()

    def count() -> None:
        nonlocal counted
        while not stop.is_set():
            counted += 1
            time.sleep(0)

    thread = threading.Thread(target=count)
    thread.start()
    before = counted
    for _ in range(5):
        engine.eval(engine.sequence(), [1] * 1000, logits="none")
    during = counted - before
    stop.set()
    thread.join()
    assert during > 5


def test_an_idle_engine_uses_no_cpu(engine: Engine) -> None:
    engine.eval(engine.sequence(), [1, 2, 3])
    time.sleep(0.05)  # longer than threads spin
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.05


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to itself")
def test_ctrl_c_ends_a_long_step_and_keeps_the_sequence(starter_model: Path) -> None:
    engine = Engine.open(starter_model, n_ctx=8192, n_batch=4096)
    sequence = engine.sequence()
    expected = engine.eval(sequence, [5, 6, 7]).copy()
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        engine.eval(sequence, [8] * 8000)
    timer.join()
    assert len(sequence) < 8003
    sequence.truncate(2)
    assert np.array_equal(engine.eval(sequence, [7]), expected)
    engine.close()


def test_an_engine_may_be_dropped_in_a_cycle_while_threads_are_late() -> None:
    """The collector frees plan, pool and weights in any order."""
    code = f"""
        import gc
        from pyllamacpu.engine.engine import Engine
        for _ in range(20):
            engine = Engine.open({str(LOGITS / "mixed_q4_k_m.gguf")!r}, n_ctx=700, n_threads=3)
            engine.itself = engine
            engine.eval(engine.sequence(), [1, 2, 3])
            del engine
            gc.collect()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)


def test_closing_frees_the_weights_at_once(starter_model: Path) -> None:
    """Without the garbage collector: nothing that holds weights is part of a cycle."""
    code = f"""
        import gc, os, sys
        from pyllamacpu.engine.engine import Engine
        gc.disable()
        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        def run(close):
            engine = Engine.open({str(starter_model)!r}, n_ctx=64)
            engine.eval(engine.sequence(), [1, 2, 3])
            loaded = resident()
            if close:
                engine.close()
                return engine, loaded, resident()
            del engine
            return None, loaded, resident()
        before = resident()
        for close in (True, False, True, False):
            kept, loaded, after = run(close)
            print(loaded - before, after - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=120
    )
    weights = starter_model.stat().st_size
    for line in done.stdout.splitlines():
        loaded, after = map(int, line.split())
        assert loaded > 0.9 * weights and after < 0.2 * weights, done.stdout


def test_only_a_fitting_buffer_is_written_to(engine: Engine) -> None:
    width = engine.logits_buffer(1).shape[1]
    assert width > engine.n_vocab or width % 16 == 0
    good, frozen = engine.logits_buffer(3), engine.logits_buffer(2)
    frozen.flags.writeable = False
    wrong = {
        "unpadded": np.empty((4, engine.n_vocab - 1), np.float32),
        "doubles": np.empty((4, width), np.float64),
        "strided": engine.logits_buffer(8)[::2],
        "columns": np.empty((width, 4), np.float32).T,
        "flat": engine.logits_buffer(4).reshape(-1),
        "frozen": frozen,
        "unaligned": engine.logits_buffer(4).reshape(-1)[1 : 1 + 2 * width].reshape(2, width),
        "short": engine.logits_buffer(1),
        "bytes": bytearray(4 * 4 * width),
    }
    sequences = [engine.sequence(), engine.sequence()]
    expected = engine.step([Entry(s, [1, 2]) for s in sequences])
    for name, buffer in wrong.items():
        with pytest.raises(OptionError, match="buffer"):
            engine.step([Entry(s, [3]) for s in sequences], buffer)  # type: ignore[arg-type]
        assert [len(s) for s in sequences] == [2, 2], name
    for sequence in sequences:
        sequence.truncate(0)
    found = engine.step([Entry(s, [1, 2]) for s in sequences], good)
    assert np.shares_memory(found, good) and np.array_equal(found, expected)


def test_logits_belong_to_the_caller(engine: Engine) -> None:
    first = engine.eval(engine.sequence(), [1, 2])
    kept = first.copy()
    engine.eval(engine.sequence(), [3, 4])
    assert np.array_equal(first, kept)


def test_wrong_calls(engine: Engine) -> None:
    sequence = engine.sequence()
    with pytest.raises(TokenizerError, match="token id -1 is outside"):
        engine.eval(sequence, [1, -1])
    with pytest.raises(TokenizerError, match=f"token id {engine.n_vocab} "):
        engine.eval(sequence, [engine.n_vocab])
    with pytest.raises(OptionError, match="no tokens"):
        engine.eval(sequence, [])
    with pytest.raises(OptionError, match="once"):
        engine.step([Entry(sequence, [1]), Entry(sequence, [2])])
    with pytest.raises(OptionError, match="1 to 64 tokens"):
        engine.step([Entry(sequence, [1] * 65)])
    with pytest.raises(ContextError, match="context is full"):
        engine.eval(sequence, [1] * 1025)
    assert len(sequence) == 1024 - 1024 % 64
    with pytest.raises(OptionError, match="damaged"):
        sequence.load(io.BytesIO(b"PLKV1\0\0\0" + b"\0" * 100))
    engine.close()
    with pytest.raises(OptionError, match="closed"):
        engine.eval(sequence, [1])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_ctx": -1}, OptionError, "n_ctx is -1"),
        ({"n_batch": 0}, OptionError, "n_batch is 0"),
        ({"n_threads": -2}, OptionError, "n_threads is -2"),
        ({"n_threads": 10**6}, OptionError, "n_threads is"),
        ({"type_k": "q4_k"}, OptionError, "KV cache cannot be q4_k"),
        ({"type_v": "q9"}, OptionError, "KV cache cannot be q9; use one of f32, .*q4_0$"),
    ],
)
def test_wrong_options(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Engine.open(LOGITS / "gqa4.gguf", **options)


def test_a_context_larger_than_memory_is_refused() -> None:
    assert memory_usable() > 0
    with pytest.raises(ContextError, match=r"needs .* GB .* ask for at most \d+"):
        Engine.open(LOGITS / "gqa4.gguf", n_ctx=2**31 - 1, type_k="f32", type_v="f32")


def rewritten(source: Path, target: Path, drop: str = "", add: str = "", **changes: object) -> Path:
    """`source` with a tensor dropped or added, or metadata changed."""
    with GGUFFile.open(source) as file, GGUFWriter(target) as writer:
        writer.copy_metadata(file.metadata, skip=[f"llama.{key}" for key in changes])
        for key, value in changes.items():
            writer.add(f"llama.{key}", value)
        for name, info in file.tensors.items():
            if name != drop:
                writer.add_tensor(name, info.shape, info.type)
        if add:
            writer.add_array(add, np.zeros(4, np.float32))
        for name in file.tensors:
            if name != drop:
                writer.write(name, file.data(name))
    return target


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    source = LOGITS / "gqa4.gguf"
    with pytest.raises(ModelError, match=r"a\.gguf: the tensor blk\.1\.ffn_up\.weight is missing"):
        Engine.open(rewritten(source, tmp_path / "a.gguf", drop="blk.1.ffn_up.weight"))
    with pytest.raises(ModelError, match=r"no use for: blk\.0\.strange"):
        Engine.open(rewritten(source, tmp_path / "b.gguf", add="blk.0.strange"))
    with pytest.raises(ModelError, match=r"has shape .* as its config says"):
        Engine.open(rewritten(source, tmp_path / "c.gguf", feed_forward_length=np.uint32(7)))


# What a step gives


def test_hidden_states_are_outputs_like_logits(engine: Engine) -> None:
    """Any mix, in the entries' order, with the bits that each has alone."""
    texts = ([1, 2, 3, 4], [9], [5, 6, 7], [8, 8])
    every = [engine.outputs([Entry(engine.sequence(), tokens, "all", "all")]) for tokens in texts]
    mixed = engine.outputs(
        [
            Entry(engine.sequence(), texts[0], "last", "all"),
            Entry(engine.sequence(), texts[1], "none", "last"),
            Entry(engine.sequence(), texts[2], "all", "none"),
            Entry(engine.sequence(), texts[3], "all", "last"),
        ]
    )
    logits = [every[0].logits[-1:], every[2].logits, every[3].logits]
    hidden = [every[0].hidden, every[1].hidden[-1:], every[3].hidden[-1:]]
    assert np.array_equal(mixed.logits, np.concatenate(logits))
    assert np.array_equal(mixed.hidden, np.concatenate(hidden))
    assert mixed.hidden.shape == (6, engine.dim)
    assert np.array_equal(engine.hidden(texts[0]), every[0].hidden)
    nothing = engine.outputs([Entry(engine.sequence(), [1, 2], "none")])
    assert len(nothing.logits) == len(nothing.hidden) == 0


def test_rows_without_logits_cost_no_product_with_the_output(starter_model: Path) -> None:
    engine = Engine.open(starter_model, n_ctx=256)
    name = engine.plan.names[-1]

    def seconds(logits: Any, hidden: Any) -> float:
        entry = Entry(engine.sequence(), [3] * 200, logits, hidden)
        return engine.profile(lambda: engine.outputs([entry]))[name]

    assert seconds("none", "all") < 0.1 * seconds("all", "none")
    engine.close()


def test_a_step_may_run_without_asking_for_signals(engine: Engine) -> None:
    """On a thread of its own, beside others: the same bits, and no call back into Python."""
    expected = engine.step([Entry(engine.sequence(), [1, 2, 3])])
    found: list[object] = []

    def work() -> None:
        found.append(engine.step([Entry(engine.sequence(), [1, 2, 3])], poll_signals=False))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert np.array_equal(found[0], expected)  # type: ignore[arg-type]


def test_embeddings_stand_in_the_place_of_tokens(engine: Engine) -> None:
    """Rows of the embedding table, given as embeddings, are the tokens themselves."""
    info = engine.file.tensors["token_embd.weight"]
    table = dequantize(engine.file.data("token_embd.weight"), info.type, info.shape)
    expected = engine.step(
        [Entry(engine.sequence(), [5, 9, 2, 7], "all"), Entry(engine.sequence(), [4, 4], "all")]
    )
    found = engine.step(
        [
            Entry(engine.sequence(), [5, -1, -2, 7], "all", embeddings=table[[9, 2]]),
            Entry(engine.sequence(), [-1, 4], "all", embeddings=table[[4]]),
        ]
    )
    assert np.array_equal(found, expected)
    sequence = engine.sequence()
    for tokens, embeddings, says in (
        ([1, -2], table[[3]], "stands for none of 1 embeddings"),
        ([-1], table[3], r"arrays of \(n, dim\)"),
        ([-1], table[[3]][:, :7], "dim being 48"),
    ):
        with pytest.raises(OptionError, match=says):
            engine.step([Entry(sequence, tokens, embeddings=embeddings)])
    with pytest.raises(TokenizerError, match="token id -1"):
        engine.step([Entry(sequence, [-1])])
