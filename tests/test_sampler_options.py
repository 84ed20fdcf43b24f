"""The options of the sampler: names, ranges, and warnings for those that do nothing."""

from __future__ import annotations

import math

import pytest

from pyllamacpu.errors import OptionError
from pyllamacpu.sampling.sampler import SamplingOptions


@pytest.mark.parametrize(
    "name, value",
    [
        ("top_p", 1.1),
        ("top_p", -0.1),
        ("top_p", "x"),
        ("top_p", math.nan),
        ("min_p", 2),
        ("typical_p", -1),
        ("temperature", math.inf),
        ("logit_bias", [1]),
        ("logit_bias", 5),
        ("logit_bias", [(1, 2, 3)]),
        ("logit_bias", {3: 1e39}),
        ("frequency_penalty", -1e38),
        ("presence_penalty", -1e300),
        ("top_k", 1.5),
        ("top_k", None),
        ("top_k", True),
        ("seed", -2),
        ("seed", 2**32),
        ("repeat_penalty", 0),
        ("repeat_last_n", -2),
        ("mirostat", 3),
        ("mirostat_tau", -1),
        ("dry_base", 0.5),
        ("dry_allowed_length", -1),
        ("xtc_threshold", 7),
        ("adaptive_decay", 1.0),
        ("min_keep", -1),
        ("dynatemp_range", -0.1),
        ("samplers", "top_k;nonsense"),
        ("samplers", "top_k;" * 33),
        ("dry_sequence_breakers", ("",)),
        ("dry_sequence_breakers", (3,)),
    ],
)
def test_bad_options_name_themselves(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=name):
        SamplingOptions(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [1.5, 2**31, "x", True])
def test_ranges_of_whole_numbers_are_exact(value: object) -> None:
    with pytest.raises(OptionError, match=r"allowed: whole numbers from -2147483648 to 2147483647$"):
        SamplingOptions(top_k=value)  # type: ignore[arg-type]


def test_option_names() -> None:
    options = SamplingOptions.from_mapping(
        {
            "temp": 0.5,
            "top-k": 3,
            "penalty_repeat": 1.1,
            "sampling_seq": "kt",
            "typ_p": None,
            "mirostat_lr": 0.2,
        }
    )
    assert options == SamplingOptions(
        temperature=0.5, top_k=3, repeat_penalty=1.1, samplers=("top_k", "temperature"), mirostat_eta=0.2
    )
    assert hash(options) and SamplingOptions.from_mapping({}) == SamplingOptions()
    assert SamplingOptions(samplers="topk;Nucleus;typical-p;temp").samplers == (
        "top_k",
        "top_p",
        "typ_p",
        "temperature",
    )
    assert SamplingOptions.from_mapping({"sampling-seq": "edskypmxt"}) == SamplingOptions()
    for bad, message in (
        ({"top_kk": 1}, "top_k"),
        ({"temp": 1, "temperature": 1}, "twice"),
        ({"sampling_seq": "q"}, "q"),
    ):
        with pytest.raises(OptionError, match=message):
            SamplingOptions.from_mapping(bad)


@pytest.mark.parametrize(
    "options, word",
    [
        ({"mirostat": 2, "top_k": 20}, "top_k"),
        ({"mirostat": 1, "repeat_penalty": 1.2}, "repeat_penalty"),
        ({"temperature": 0, "top_p": 0.5}, "top_p"),
        ({"temperature": 0, "seed": 4}, "seed"),
        ({"samplers": "temperature", "top_k": 5}, "top_k"),
        ({"dry_base": 2.0}, "dry_base"),
        ({"xtc_threshold": 0.3}, "xtc_threshold"),
        ({"xtc_threshold": 0.8, "xtc_probability": 0.5}, "xtc_probability"),
        ({"repeat_last_n": 5}, "repeat_last_n"),
        ({"repeat_last_n": 0, "repeat_penalty": 1.5}, "repeat_last_n"),
        ({"mirostat_tau": 3.0}, "mirostat_tau"),
        ({"dynatemp_exponent": 2.0}, "dynatemp_exponent"),
        ({"adaptive_target": 0.5}, "adaptive_target"),
    ],
)
def test_options_that_do_nothing_warn(options: dict, word: str) -> None:
    assert any(word in warning for warning in SamplingOptions(**options).warnings())


def test_options_that_work_do_not_warn() -> None:
    for options in (
        {},
        {"temperature": 0},
        {"temperature": 0, "xtc_probability": 0.5, "seed": 3, "typical_p": 0.5},
        {"mirostat": 2, "mirostat_tau": 3.0, "seed": 1, "temperature": 0.5, "logit_bias": {1: 1}},
        {
            "dry_multiplier": 0.8,
            "dry_base": 2.0,
            "dry_allowed_length": 3,
            "repeat_penalty": 1.1,
            "repeat_last_n": 9,
        },
        {"samplers": "top_k;adaptive_p", "adaptive_target": 0.5, "adaptive_decay": 0.5},
    ):
        assert SamplingOptions(**options).warnings() == []


def test_bounds_in_messages_are_not_rounded() -> None:
    with pytest.raises(OptionError, match=r"allowed: whole numbers from -1 to 4294967295$"):
        SamplingOptions(seed=2**32)
