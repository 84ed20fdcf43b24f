"""The measuring package: options, tests, costs against an engine, repeated runs, batches, the probes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import DIM, FFN, HEADS, KV_HEADS, LAYERS, PIECES, write_model

from pyllamacpu.bench import formats
from pyllamacpu.bench.batched import BatchedOptions, prompt_steps, run_batched
from pyllamacpu.bench.cases import BenchOptions, Case, Setup, cases
from pyllamacpu.bench.cost import Cost, Step, costs, steps_of, total
from pyllamacpu.bench.machine import CODE_WIDTHS, Limits, code_bits, measure
from pyllamacpu.bench.models import model_facts, size_label
from pyllamacpu.bench.ranges import numbers, pairs, words
from pyllamacpu.bench.runner import RandomTokens, open_engine, run
from pyllamacpu.engine.engine import Engine
from pyllamacpu.engine.pages import Sequence
from pyllamacpu.errors import GGUFError, OptionError
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.native import isa_selected, lib, thread_pool

VOCAB = len(PIECES)
LIMITS = Limits(1, "scalar", read_bytes=1e9, int8_ops=1e10, fp32_ops=1e9)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("bench") / "tiny.gguf", n_ctx=512)


@pytest.fixture
def engine(model: Path) -> Iterator[Engine]:
    engine = open_engine(Setup(model, 1, "f16", "f16", 64, 16), 256)
    yield engine
    engine.close()


# Lists and ranges


@pytest.mark.parametrize(
    "texts, expected",
    [
        (["512"], (512,)),
        (["16,32"], (16, 32)),
        (["16", "32,0"], (16, 32, 0)),
        (["1-4"], (1, 2, 3, 4)),
        (["128-512+128"], (128, 256, 384, 512)),
        (["1-10*3"], (1, 3, 9)),
        (["4-4"], (4,)),
        ([], ()),
    ],
)
def test_numbers(texts: list[str], expected: tuple[int, ...]) -> None:
    assert numbers(texts, "-p") == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "-1",
        "1-",
        "4-1",
        "1-4+0",
        "1-4*1",
        "0-4*2",
        "1-4-2",
        "1,,2",
        "1e3",
        "1-4*",
        "9" * 11,
        "0-2000000",
    ],
)
def test_bad_numbers_are_refused_with_the_option(text: str) -> None:
    with pytest.raises(OptionError, match=r"^-p"):
        numbers([text], "-p")


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 50))
def test_ranges_are_pythons(first: int, length: int, step: int) -> None:
    last = first + length
    assert numbers([f"{first}-{last}+{step}"], "-p") == tuple(range(first, last + 1, step))


def test_numbers_below_the_minimum_are_refused() -> None:
    with pytest.raises(OptionError, match="-t: 0 is out of range"):
        numbers(["1,0"], "-t", 1)


def test_pairs_and_words() -> None:
    assert pairs(["512,128", "64,8"], "-pg") == ((512, 128), (64, 8))
    for bad in ("512", "1,2,3", "0,1", "a,b"):
        with pytest.raises(OptionError, match="-pg"):
            pairs([bad], "-pg")
    assert words(["F16,q8_0"], "-ctk", ("f16", "q8_0")) == ("f16", "q8_0")
    with pytest.raises(OptionError, match="'q9'"):
        words(["q9"], "-ctk", ("f16",))


# Tests


def test_cases_are_all_combinations_those_of_a_setup_together() -> None:
    options = BenchOptions(
        (Path("a"),), n_prompt=(8, 0), n_gen=(4,), n_pg=((2, 3),), n_depth=(0, 16), type_k=("f16", "q8_0")
    )
    found = cases(options)
    names = ["pp8", "tg4", "pp2+tg3", "pp8 @ d16", "tg4 @ d16", "pp2+tg3 @ d16"]
    assert [case.name for case in found] == names * 2
    assert [case.setup.type_k for case in found] == ["f16"] * 6 + ["q8_0"] * 6
    assert found[5].n_tokens == 5 and found[5].n_ctx == 21


def test_no_tokens_are_no_test() -> None:
    with pytest.raises(OptionError, match="nothing to measure"):
        cases(BenchOptions((Path("a"),), n_prompt=(0,), n_gen=(0,)))


def test_random_tokens_depend_on_seed_and_place_only() -> None:
    one, other = RandomTokens(1000, 7), RandomTokens(1000, 7)
    whole = one.take(0, 100)
    assert other.take(60, 40) == whole[60:] and other.take(0, 60) == whole[:60]
    assert RandomTokens(1000, 8).take(0, 100) != whole
    assert min(whole) >= 0 and max(whole) < 1000


# Costs


def test_steps_cover_the_test() -> None:
    found = list(steps_of(40, 5, 100, 16))
    assert found == [
        (Step(16, 100, 0), 1),
        (Step(16, 116, 0), 1),
        (Step(8, 132, 1), 1),
        (Step(1, 142, 1), 5),
    ]


def test_cost_of_one_token_is_the_weights_the_keys_and_the_products(engine: Engine) -> None:
    depth = 9
    found = total(engine, Step(1, depth, 1))
    head = DIM // HEADS
    kv = KV_HEADS * head
    layer = DIM * (DIM + 2 * kv + DIM) + 3 * DIM * FFN
    products = 2 * (LAYERS * layer + VOCAB * DIM)
    scores = LAYERS * (depth + 1) * 4 * HEADS * head
    keys = LAYERS * (depth + 1) * 2 * kv * 2  # f16
    assert found.int8 == 0
    assert products + scores <= found.fp32 <= (products + scores) * 1.05
    row = DIM * 4
    assert found.read == pytest.approx(engine.weight_bytes + keys + row, rel=0.05)


def test_attention_counts_each_query_and_key_once(engine: Engine) -> None:
    one = costs(engine, Step(1, 0, 1))["attention"].fp32
    assert costs(engine, Step(8, 4, 1))["attention"].fp32 == one * sum(4 + i + 1 for i in range(8))
    assert costs(engine, Step(1, 4, 3, sequences=3))["attention"].fp32 == 3 * 5 * one


def test_quantized_matrices_count_as_int8() -> None:
    path = Path(__file__).parent / "fixtures" / "logits" / "q4_k.gguf"
    engine = open_engine(Setup(path, 1, "f32", "f32", 8, 8), 8)
    try:
        found = total(engine, Step(4, 0, 4))
        elements = sum(info.n_elements for info in engine.file.tensors.values() if len(info.shape) == 2)
        assert found.int8 > 0.5 * 2 * 4 * elements
        assert found.limiting(replace(LIMITS, read_bytes=1e18, fp32_ops=1e18)) == "int8"
        assert len(found.codes) == len(CODE_WIDTHS) and sum(found.codes) == pytest.approx(found.int8)
        assert found.codes[code_bits(TensorType.Q4_K) - 4] > 0.5 * found.int8
    finally:
        engine.close()


@pytest.mark.parametrize("cache_type", ("f16", "q8_0", "q4_0"))
def test_attention_counts_in_the_units_that_it_takes(cache_type: str) -> None:
    path = Path(__file__).parent / "fixtures" / "logits" / "q4_k.gguf"
    engine = open_engine(Setup(path, 1, cache_type, cache_type, 8, 8), 8)
    try:
        found = costs(engine, Step(2, 4, 1))["attention"]
        heads, dim = engine.config.n_heads, engine.config.head_dim
        operations = engine.config.n_layers * (5 + 6) * heads * 2 * 2 * dim
        whole = cache_type != "f16" and isa_selected() in ("avx2", "avxvnni", "avx512", "avx512vbmi")
        counted = found.codes[CODE_WIDTHS.index(16)], found.fp32
        assert counted == ((operations, 0) if whole else (0, operations))
        assert found.int8 == sum(found.codes)
    finally:
        engine.close()


def test_steps_without_outputs_cost_no_output_matrix(engine: Engine) -> None:
    with_logits, without = total(engine, Step(4, 0, 1)), total(engine, Step(4, 0, 0))
    assert with_logits.fp32 - without.fp32 >= 2 * VOCAB * DIM
    assert with_logits.read - without.read >= VOCAB * DIM * 4


def test_least_time_overlaps_reading_and_computing() -> None:
    assert Cost(2e9, 1e10, 0.0).least_seconds(LIMITS) == 2.0
    assert Cost(1e9, 1e10, 1e9).least_seconds(LIMITS) == 2.0
    assert Cost(2e9, 1e10, 0.0).limiting(LIMITS) == "read"


def test_the_integer_limit_is_that_of_the_widths_of_the_codes() -> None:
    limits = replace(LIMITS, code_ops=(4e10, 0.0, 2e10, 0.0, 1e10, 5e9))
    narrow, wide = (
        Cost(0.0, 4e10, 0.0, (4e10, 0.0, 0.0, 0.0, 0.0, 0.0)),
        Cost(0.0, 1e10, 0.0, (0.0, 0.0, 0.0, 0.0, 1e10, 0.0)),
    )
    assert narrow.limit("int8", limits) == 4e10 and narrow.least_seconds(limits) == 1.0
    assert wide.limit("int8", limits) == 1e10 and wide.least_seconds(limits) == 1.0
    both = (narrow + wide) * 2.0
    assert both.least_seconds(limits) == 4.0 and both.limit("int8", limits) == 2.5e10
    assert (narrow + Cost(1.0)).codes == narrow.codes
    assert narrow.limit("int8", LIMITS) == LIMITS.int8_ops and narrow.limit("fp32", limits) == LIMITS.fp32_ops


# Running


def options_for(model: Path, **changes: object) -> BenchOptions:
    usual = {
        "n_prompt": (20,),
        "n_gen": (3,),
        "n_ubatch": (16,),
        "n_threads": (1,),
        "repetitions": 3,
        "limits": False,
    }
    return BenchOptions((model,), **(usual | changes))  # type: ignore[arg-type]


def test_results_have_llama_benchs_keys_and_consistent_numbers(model: Path) -> None:
    first, second = run(options_for(model, n_depth=(5,)))
    assert [first.case.name, second.case.name] == ["pp20 @ d5", "tg3 @ d5"]
    row = first.row()
    for key in (
        *("build_commit", "build_number", "cpu_info", "gpu_info", "backends", "model_filename", "model_type"),
        *("model_size", "model_n_params", "n_batch", "n_ubatch", "n_threads", "type_k", "type_v", "n_prompt"),
        *("n_gen", "n_depth", "test_time", "avg_ns", "stddev_ns", "avg_ts", "stddev_ts"),
    ):
        assert key in row
    assert len(row["samples_ns"]) == len(row["samples_ts"]) == 3
    assert row["samples_ts"][0] == pytest.approx(20e9 / row["samples_ns"][0])
    assert row["avg_ts"] == pytest.approx(np.mean(row["samples_ts"]))
    assert row["stddev_ts"] == pytest.approx(np.std(row["samples_ts"], ddof=1))
    assert row["median_ts"] == sorted(row["samples_ts"])[1]
    assert row["model_filename"] == str(model) and row["n_threads"] == 1
    assert row["peak_memory"] > row["weight_bytes"] > 0 and row["load_ns"] > 0
    assert row["limit_share"] is None and row["limited_by"] is None


def test_depth_is_filled_and_repetitions_do_not_lengthen_the_sequence(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[tuple[int, int]] = []
    real = Engine.eval

    def spy(self: Engine, sequence: Sequence, tokens: list[int], **kwargs: object) -> object:
        lengths.append((len(sequence), len(tokens)))
        return real(self, sequence, tokens, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "eval", spy)
    list(run(options_for(model, n_depth=(40, 10), n_gen=(2,), repetitions=2, warmup=False)))
    prompt, generation = [(20,)] * 2, [(1,)] * 4
    assert lengths[0] == (0, 40)  # the depth; the second depth is a cut of the first
    assert [n for _, n in lengths[1:]] == [n for (n,) in (*prompt, *generation) * 2]
    assert [at for at, _ in lengths[1:]] == [40, 40, 40, 41, 40, 41, 10, 10, 10, 11, 10, 11]


def test_limits_give_the_share_of_what_limits(model: Path) -> None:
    result = next(iter(run(options_for(model, n_gen=(0,), limits=True, limit_seconds=0.05))))
    share = result.share
    assert share is not None and result.limits is not None
    assert share.resource in ("read", "fp32")
    assert share.rate == pytest.approx(result.cost.of(share.resource) * result.median_ts / 20)
    assert 0 < share.share == result.row()["limit_share"]
    assert result.row()["least_ns"] > 0


def test_a_profile_has_every_op_and_its_cost(model: Path) -> None:
    result = next(iter(run(options_for(model, n_prompt=(20,), n_gen=(0,), profile=True))))
    names = {op.name for op in result.profile}
    assert {"embed", "attention", "rms_norm", "matmul ffn_down", "matmul output"} <= names
    assert sum((op.cost for op in result.profile), Cost()) == result.cost
    assert sum(op.seconds for op in result.profile) > 0


def test_progress_ends_with_all_runs_done(model: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    list(run(options_for(model), lambda *what: seen.append(what)))
    assert seen[-1][1:] == (8, 8)  # two tests of one untimed and three timed runs
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_a_missing_model_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises((GGUFError, OSError)):
        list(run(options_for(tmp_path / "none.gguf")))


def test_model_facts(engine: Engine) -> None:
    facts = model_facts(engine.file)
    assert facts.type.startswith("llama ") and facts.type.endswith("F32")
    assert facts.n_params * 4 == facts.size
    assert [size_label(n) for n in (134_515_008, 1_235_814_400, 8_030_261_248)] == ["135M", "1B", "8B"]


# Many sequences


def test_prompt_steps_give_every_sequence_its_tokens(engine: Engine) -> None:
    sequences = [engine.sequence() for _ in range(3)]
    steps = list(prompt_steps(sequences, 10, 8, lambda start, n: list(range(start, start + n))))
    assert [sum(len(e.tokens) for e in step) for step in steps] == [8, 8, 8, 6]
    got: dict[int, list[int]] = {id(s): [] for s in sequences}
    for entry in (entry for step in steps for entry in step):
        got[id(entry.sequence)] += entry.tokens
    assert list(got.values()) == [list(range(10 * i, 10 * i + 10)) for i in range(3)]
    last = [entry.logits for step in steps for entry in step]
    assert last.count("last") == 3


@pytest.mark.parametrize("shared, n_kv", [(False, [11, 44]), (True, [11, 20])])
def test_batched_results(model: Path, shared: bool, n_kv: list[int]) -> None:
    setup = Setup(model, 1, "f16", "f16", 64, 16)
    options = BatchedOptions(setup, (8,), (3,), (1, 4), shared=shared, limits=False, repetitions=2)
    rows = [result.row() for result in run_batched(options)]
    assert [row["n_kv"] for row in rows] == n_kv
    for row in rows:
        assert row["n_kv_max"] == n_kv[-1]
        assert row["speed_tg"] == pytest.approx(row["pl"] * 3 / row["t_tg"])
        assert row["speed_pp"] == pytest.approx((8 if shared else 8 * row["pl"]) / row["t_pp"])
        assert row["speed"] == pytest.approx(row["n_kv"] / row["t"])


def test_more_sequences_than_a_step_takes_are_refused(model: Path) -> None:
    with pytest.raises(OptionError, match="-npl 17"):
        list(
            run_batched(
                BatchedOptions(Setup(model, 1, "f16", "f16", 64, 16), n_sequences=(17,), limits=False)
            )
        )


# Probes


def test_limits_are_positive_and_of_a_plausible_size() -> None:
    found = measure(1, 0.1)
    assert 1e7 < found.read_bytes < 1e13
    assert 1e7 < found.int8_ops < 1e15 and 1e7 < found.fp32_ops < 1e15
    assert found.n_threads == 1
    widths = {code_bits(kind) for kind in TensorType} - {0}
    assert 8 in widths and widths <= set(range(4, 9))
    measured = dict(zip(CODE_WIDTHS, found.code_ops, strict=True))
    assert [bits for bits, rate in measured.items() if rate] == [*sorted(widths), 16]
    assert measured[8] == found.int8_ops and measured[16] < 2 * found.int8_ops
    assert code_bits(TensorType.F16) == code_bits(-1) == 0


def test_probes_refuse_too_little_memory_to_read() -> None:
    pool = thread_pool(1)
    assert lib.pl_probe_read(pool, 1000, 0.01) == lib.PL_EINVAL
    assert lib.pl_probe_read(pool, 1 << 20, 0.01) > 0


def test_case_names() -> None:
    setup = Setup(Path("m"), 0, "f16", "f16", 2048, 512)
    assert setup.step_tokens == 512
    assert Case(setup, 512, 128, 4096).name == "pp512+tg128 @ d4096"


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 150])
def test_a_table_fits_the_terminal_and_says_what_is_left_out(width: int) -> None:
    words = ("model", "size", "params", "backend", "threads", "test", "t/s", "rate", "of limit", "load")
    columns = [(word, True, lambda row, word=word: f"{word}-{row}") for word in words]
    table = formats.Markdown(lambda _: columns, width)
    text = table.add("1") + table.add("2")
    kept = [word for word in words if word not in table.left_out]
    assert [cell.strip() for cell in text.split("\n")[0].strip("|").split("|")] == kept
    assert {"model", "test", "t/s", "of limit"} <= set(kept)
    assert width < 60 or max(map(len, text.splitlines())) <= width
    whole = formats.Markdown(lambda _: columns)
    whole.add("1")
    assert whole.left_out == []
