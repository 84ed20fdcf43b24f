"""engine/cost_model.py and engine/chunks.py."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllamacpu.engine.chunks import Unread, share_budget
from pyllamacpu.engine.cost_model import CostModel, StepSize
from pyllamacpu.engine.pages import PAGE

A, B, C, D = 2e-3, 1e-3, 0.5e-3, 1e-8


def cost(size: StepSize) -> float:
    return A + B * size.prompt + C * size.decoding + D * size.positions


def measured(n: int = 200, noise: float = 0.05, outliers: float = 0.1) -> CostModel:
    model, chance = CostModel(), random.Random(3)
    for _ in range(n):
        prompt, decoding = chance.choice([0, 0, 32, 96, 512]), chance.randrange(1, 16)
        size = StepSize(prompt, decoding, (prompt + decoding) * chance.randrange(10_000))
        seconds = cost(size) * chance.uniform(1 - noise, 1 + noise)
        model.observe(size, seconds * (chance.uniform(3, 20) if chance.random() < outliers else 1))
    return model


@pytest.mark.parametrize("size", [StepSize(0, 1, 100), StepSize(0, 16, 10_000), StepSize(512, 4, 500_000)])
def test_the_cost_of_a_step_is_learned_in_spite_of_outliers(size: StepSize) -> None:
    assert measured().seconds(size) == pytest.approx(cost(size), rel=0.2)


def test_the_budget_keeps_the_time_between_tokens() -> None:
    model, decoding = measured(), StepSize(0, 8, 8000)
    budget = model.prompt_budget(0.1, decoding, 1000)
    assert budget % PAGE == 0
    assert 0.05 < cost(StepSize(budget, 8, 8000 + budget * 1000)) < 0.115
    assert model.prompt_budget(0.1, decoding, 100_000) < budget


@pytest.mark.parametrize("n", [1, 4, 8, 13, 40])
@pytest.mark.parametrize("target", [0.001, 0.02])
def test_steps_are_short_as_long_as_the_prompt_is_not_starved(n: int, target: float) -> None:
    decoding = StepSize(0, n, 100 * n)
    budget = measured().prompt_budget(target, decoding, 0)
    assert 0 < budget <= PAGE
    assert budget == PAGE or (budget + n) % 8 == 0
    seconds = cost(StepSize(budget, n, 100 * n))
    if budget < PAGE:  # reading alone takes B a token
        assert seconds < 1.6 * B * budget
    if budget > 8:  # fewer would read the prompt too slowly, or fit too
        fewer = cost(StepSize(budget - 8, n, 100 * n))
        assert fewer < target or fewer > 1.3 * B * (budget - 8)


def test_less_than_a_page_is_read_where_that_keeps_the_target() -> None:
    model = CostModel()
    for _ in range(50):
        for prompt in (0, 16, 512):
            size = StepSize(prompt, 1, 0)
            model.observe(size, 1e-3 + 4e-3 * prompt)
    assert model.prompt_budget(0.1, StepSize(0, 1, 0), 0) == 23
    assert model.prompt_budget(0.2, StepSize(0, 1, 0), 0) == PAGE
    assert model.prompt_budget(0.3, StepSize(0, 1, 0), 0) == 2 * PAGE


def test_before_anything_is_measured_a_page_is_read_and_then_what_is_known_to_fit() -> None:
    model = CostModel()
    assert model.seconds(StepSize(1, 1, 1)) == 0
    assert model.prompt_budget(0.1, StepSize(0, 1, 5), 0) == PAGE
    model.observe(StepSize(32, 1, 5), 0.04)
    assert model.prompt_budget(0.1, StepSize(0, 1, 5), 0) == 64


def test_long_answers_do_not_push_out_what_was_learned_of_prompts() -> None:
    model = measured()
    for _ in range(1000):
        model.observe(StepSize(0, 2, 100), cost(StepSize(0, 2, 100)))
    assert model.seconds(StepSize(512, 0, 0)) == pytest.approx(cost(StepSize(512, 0, 0)), rel=0.25)


PROMPTS = st.lists(
    st.builds(Unread, st.integers(0, 500), st.integers(1, 5000), st.integers(0, 3)), max_size=6
)


@given(PROMPTS, st.integers(1, 600))
def test_shares_keep_to_the_budget_and_to_pages(prompts: list[Unread], budget: int) -> None:
    shares = share_budget(prompts, budget)
    assert sum(shares) <= budget
    assert any(shares) == bool(prompts)
    for prompt, n in zip(prompts, shares, strict=True):
        assert 0 <= n <= prompt.remaining
        if budget >= PAGE and 0 < n < prompt.remaining:
            assert (prompt.start + n) % PAGE == 0


def test_the_shortest_comes_first_and_a_giant_leaves_room() -> None:
    assert share_budget([Unread(0, 10_000), Unread(0, 40)], 256) == [192, 40]
    assert share_budget([Unread(0, 10_000), Unread(0, 9_000), Unread(0, 8_000)], 256) == [0, 128, 128]
    assert share_budget([Unread(0, 10_000)], 256) == [256]
    assert share_budget([Unread(20, 10_000)], 256) == [236]


def test_who_was_passed_over_comes_first_in_the_end() -> None:
    waited = 0
    while not share_budget([Unread(0, 10_000, waited), Unread(0, 64), Unread(0, 64)], 64)[0]:
        waited += 1
    assert 0 < waited <= 10_000 // 64
