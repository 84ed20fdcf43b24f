"""Sequences with adapters, and without, in one batch: each has its own bits (engine/adapters.py)."""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from gguf_build import F32, Build
from llama4_models import llama4  # noqa: F401
from llama4_models import opened as llama4_opened
from test_batch_invariance import assert_same_bits, opened, prompt

from pyllamacpu.api.loading import make_scheduler
from pyllamacpu.engine.engine import Engine, Entry
from pyllamacpu.engine.generate import Request
from pyllamacpu.engine.page_files import PageFiles
from pyllamacpu.engine.pages import Sequence
from pyllamacpu.engine.prefix_cache import PrefixCache
from pyllamacpu.engine.scheduler import Scheduler
from pyllamacpu.errors import OptionError
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.model.lora import AdapterScales
from pyllamacpu.model.weights import Experts, Matrix
from pyllamacpu.sampling.options import SamplingOptions
from pyllamacpu.sampling.sampler import TokenLogprobs

SHAPES = ("gqa3", "mixed_q4_k_m")
LENGTH = 150


def write_adapter(path: Path, engine: Engine, rank: int, seed: int, every: int = 1, part: str = "") -> Path:
    """For every `every`-th of the model's matrices, and its embedding, with `part` in their names."""
    rng = np.random.default_rng(seed)
    build = Build()
    for key, text in (
        ("general.type", "adapter"),
        ("general.architecture", engine.config.arch),
        ("adapter.type", "lora"),
    ):
        build.add_string(key, text.encode())
    build.add("adapter.lora.alpha", F32, build.pack("f", 2.0 * rank))
    kinds = (Matrix, Experts)
    names = [name for name, w in engine.model.weights.items() if isinstance(w, kinds) and part in name]
    for name in names[::every]:
        weight = engine.model.weights[name]
        first = weight[0] if isinstance(weight, Experts) else weight
        n = (len(weight),) if isinstance(weight, Experts) else ()
        a = rng.standard_normal((*n, rank, first.cols)) / first.cols**0.5
        b = rng.standard_normal((*n, first.rows, rank)) * 0.05
        for side, values in (("a", a), ("b", b)):
            raw = np.ascontiguousarray(values, np.float32).tobytes()
            build.add_tensor(f"{name}.lora_{side}", values.shape[::-1], 0, raw)
    table = engine.model.weights.table("token_embd.weight")
    for side, shape in (("a", (table.rows, rank)), ("b", (table.cols, rank))):
        raw = (rng.standard_normal(shape) * 0.1).astype(np.float32).tobytes()
        if part in "token_embd.weight":
            build.add_tensor(f"token_embd.weight.lora_{side}", shape[::-1], 0, raw)
    path.write_bytes(build.bytes())
    return path


@pytest.fixture(params=SHAPES, scope="module")
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """With two adapters loaded, which no sequence uses unless it says so."""
    folder = tmp_path_factory.mktemp("adapters")
    engine = opened(request.param)
    files = [
        write_adapter(folder / "one.gguf", engine, 16, 1),
        write_adapter(folder / "two.gguf", engine, 5, 2, 3),
    ]
    engine.load_adapters((path, 1.0) for path in files)
    engine.default_adapters = ()
    yield engine
    engine.close()


def sequence(engine: Engine, adapters: AdapterScales) -> Sequence:
    found = engine.sequence()
    found.adapters = adapters
    return found


def logits(
    engine: Engine, tokens: list[int], adapters: AdapterScales, cut: int = 0
) -> npt.NDArray[np.float32]:
    """Of every token, `cut` at a time (0: all)."""
    own, cut = sequence(engine, adapters), cut or len(tokens)
    parts = range(0, len(tokens), cut)
    rows = [engine.eval(own, tokens[i : i + cut], logits="all").copy() for i in parts]
    own.close()
    return np.concatenate(rows)


def mixes(engine: Engine) -> list[AdapterScales]:
    given: list[list[tuple[int, float]]] = [[], [(0, 1.0)], [(0, 0.5)], [(1, 1.0)], [(1, -2.0), (0, 1.0)]]
    return [engine.adapters.scales(scales) for scales in given]


def test_rows_without_an_adapter_keep_the_bits_of_the_plain_plan(
    engine: Engine, request: pytest.FixtureRequest
) -> None:
    plain = opened(request.node.callspec.params["engine"])
    tokens = prompt(plain, LENGTH)
    assert_same_bits(logits(engine, tokens, ()), logits(plain, tokens, ()))
    assert not {"adapter_down", "adapter_up"} & set(plain.plan.names)
    plain.close()


def test_each_mix_of_adapters_has_its_own_logits_and_the_same_bits_in_chunks(engine: Engine) -> None:
    tokens = prompt(engine, LENGTH)
    found = [logits(engine, tokens, mix) for mix in mixes(engine)]
    for i, one in enumerate(found):
        assert all(np.abs(one - other).mean() > 0.01 * one.std() for other in found[:i])
    for mix, whole in zip(mixes(engine), found, strict=True):
        assert_same_bits(logits(engine, tokens, mix, 1), whole)
        assert_same_bits(logits(engine, tokens, mix, 67), whole)


def test_a_batch_mixes_adapters_and_each_row_has_the_bits_it_has_alone(engine: Engine) -> None:
    """Prompts of different lengths, then tokens one by one, in changing order."""
    tokens = prompt(engine, LENGTH)
    wanted = [logits(engine, tokens, mix) for mix in mixes(engine)]
    own = [sequence(engine, mix) for mix in (*mixes(engine), *mixes(engine))]
    lengths = [3, 40, 17, 1, 30, 2, 25, 9, 60, 5]
    rows = engine.step([Entry(s, tokens[:n], "all") for s, n in zip(own, lengths, strict=True)])
    at = 0
    for i, n in enumerate(lengths):
        assert_same_bits(rows[at : at + n], wanted[i % 5][:n])
        at += n
    for step in range(3):
        order = np.random.default_rng(step).permutation(len(own))
        rows = engine.step([Entry(own[i], [tokens[len(own[i])]]) for i in order])
        for row, i in zip(rows, order, strict=True):
            assert_same_bits(row[None], wanted[i % 5][len(own[i]) - 1 : len(own[i])])


def test_threads_change_nothing(engine: Engine, request: pytest.FixtureRequest) -> None:
    tokens, paths = prompt(engine, LENGTH), [engine.adapters[i].path for i in range(2)]
    wanted = logits(engine, tokens, mixes(engine)[4])
    for n_threads in (1, 3):
        other = opened(request.node.callspec.params["engine"], n_threads=n_threads)
        other.load_adapters(zip(paths, (1.0, -2.0), strict=True))
        assert_same_bits(logits(other, tokens, other.default_adapters), wanted)
        other.close()


def test_another_adapter_beside_changes_nothing(engine: Engine, request: pytest.FixtureRequest) -> None:
    """Loaded, and not used."""
    tokens = prompt(engine, 40)
    other = opened(request.node.callspec.params["engine"])
    other.load_adapters([(engine.adapters[1].path, 1.0)])
    alone = logits(other, tokens, other.default_adapters)
    assert_same_bits(alone, logits(engine, tokens, mixes(engine)[3]))
    other.close()


def test_the_prefix_cache_never_crosses_adapters_or_scales(engine: Engine) -> None:
    tokens, prefixes = prompt(engine, 80), PrefixCache(engine.cache)
    for i, mix in enumerate(mixes(engine)):
        fresh = sequence(engine, mix)
        assert prefixes.extend(fresh, tokens) == 0, i
        engine.eval(fresh, tokens)
        prefixes.insert(fresh)
        again = sequence(engine, mix)
        assert prefixes.extend(again, tokens) == 80
        assert prefixes.n_in_use(tokens, mix) == 2
    prefixes.clear()


def answers(
    scheduler: Scheduler, tokens: list[int], together: list[AdapterScales]
) -> tuple[list[list[TokenLogprobs]], list[int]]:
    """What requests with each mix bring, and how many tokens of their prompts were found."""
    greedy = SamplingOptions(temperature=0.0)
    handles = [scheduler.submit(Request(tokens, greedy, 12, logprobs=2, adapters=mix)) for mix in together]
    found: dict[object, list[TokenLogprobs]] = {handle: [] for handle in handles}
    while not all(handle.is_finished for handle in handles):
        for event in scheduler.step():
            assert event.error is None
            if event.text is not None:
                found[event.handle] += event.text.logprobs
    return list(found.values()), [handle.n_cached for handle in handles]


def alone(engine: Engine, tokens: list[int]) -> list[list[TokenLogprobs]]:
    """Of each mix by itself, with nothing kept before."""
    found = []
    for mix in mixes(engine):
        scheduler = Scheduler(engine, None)
        found += answers(scheduler, tokens, [mix])[0]
        scheduler.close()
    return found


def test_requests_with_adapters_side_by_side(engine: Engine) -> None:
    """Each gets the tokens that it gets alone, also from the prefix cache of an earlier one."""
    tokens = prompt(engine, 70)
    wanted = alone(engine, tokens)
    assert len({tuple(answer) for answer in wanted}) > 1
    scheduler = Scheduler(engine, None)
    assert answers(scheduler, tokens, mixes(engine))[0] == wanted
    assert answers(scheduler, tokens, mixes(engine))[0] == wanted
    scheduler.close()


def test_pages_on_the_disk_are_of_their_adapters_and_scales(engine: Engine, tmp_path: Path) -> None:
    """The second adapter leaves out matrices that the first one changes, and the other way round."""
    tokens = prompt(engine, 70)
    wanted = alone(engine, tokens)
    for n_found in (0, 64):
        scheduler = make_scheduler(engine, None, PageFiles(tmp_path / "pages", 1 << 30))
        assert answers(scheduler, tokens, mixes(engine)) == (wanted, [n_found] * len(wanted))
        scheduler.close()


def test_a_saved_state_is_of_its_adapters(engine: Engine) -> None:
    tokens = prompt(engine, 40)
    states = []
    for mix in mixes(engine):
        own = sequence(engine, mix)
        engine.eval(own, tokens)
        out = io.BytesIO()
        own.save(out)
        states.append(out.getvalue())
    for i, mix in enumerate(mixes(engine)):
        for j, state in enumerate(states):
            own = sequence(engine, mix)
            if i == j:
                own.load(io.BytesIO(state))
                assert own.tokens == tokens
            else:
                with pytest.raises(OptionError, match="other adapters"):
                    own.load(io.BytesIO(state))


def test_experts_as_if_merged(llama4: dict[str, Path], tmp_path: Path) -> None:
    """Every linear weight of a Llama 4, each expert's too, against the same model with B A added to its
    weights; rows of other sequences in the batch keep their bits.
    """
    plain, engine = (llama4_opened(llama4["scout"]) for _ in range(2))
    path = write_adapter(tmp_path / "experts.gguf", plain, 5, 7)
    engine.load_adapters([(path, 0.75)])
    assert {name for name in engine.adapters[0].pairs if "_exps" in name}
    tokens = prompt(plain, 60)
    blocks = {
        name: (TensorType.F32, merged(plain, name, engine.adapters[0].path, 0.75 * 2))
        for name in engine.adapters[0].pairs
    }
    with plain.replaced(blocks):
        wanted = logits(plain, tokens, ())
    found = logits(engine, tokens, engine.default_adapters)
    base = logits(plain, tokens, ())
    assert np.abs(found - wanted).max() < 2e-4 * wanted.std()
    assert np.abs(base - wanted).mean() > 0.1 * wanted.std()
    assert_same_bits(logits(engine, tokens, ()), base)
    own = [sequence(engine, mix) for mix in ((), engine.default_adapters, (), engine.default_adapters)]
    rows = engine.step([Entry(s, tokens[:n], "all") for s, n in zip(own, (20, 60, 7, 1), strict=True)])
    for at, n, whole in ((0, 20, base), (20, 60, found), (80, 7, base), (87, 1, found)):
        assert_same_bits(rows[at : at + n], whole[:n])
    assert_same_bits(logits(engine, tokens, engine.default_adapters, 1), found)
    plain.close()
    engine.close()


def merged(engine: Engine, name: str, adapter: Path, scale: float) -> npt.NDArray[np.uint8]:
    """The float32 bytes of W + scale * B A."""
    with GGUFFile.open(adapter) as file:
        names = (f"{name}.lora_a", f"{name}.lora_b")
        a, b = (dequantize(file.data(part), TensorType.F32, file.tensors[part].shape) for part in names)
    added = a @ b.T if name == "token_embd.weight" else np.matmul(b, a)
    info = engine.file.tensors[name]
    whole = dequantize(engine.file.data(name), info.type, info.shape) + np.float32(scale) * added
    return np.ascontiguousarray(whole, np.float32).view(np.uint8).reshape(-1)


def test_scales(engine: Engine) -> None:
    loaded = engine.adapters
    assert [(a.name, scale) for a, scale in loaded.scales([(1, 2), (0, 0.0)])] == [("two", 2.0)]
    assert [scale for _, scale in loaded.scales([(0, np.float32(0.5)), (1, np.int64(2))])] == [0.5, 2.0]
    for given, says in (
        ([(2, 1.0)], "no adapter 2; those loaded are 0 to 1"),
        ([(0, 1.0), (0, 2.0)], "given twice"),
        ([(0, float("inf"))], "must be a number"),
        ([("0", 1.0)], "no adapter '0'"),
        ([(0, True)], "must be a number"),
    ):
        with pytest.raises(OptionError, match=says):
            loaded.scales(given)  # type: ignore[arg-type]
