"""Which engine of several gets a request.

Covers server/prefix_routing.py.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from pyllamacpu.server.prefix_routing import PIECE, SLACK, PrefixMemory, choose, prompt_keys


def chat(*texts: str, system: str = "Be kind.") -> dict[str, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"messages": [{"role": "system", "content": system}, *messages]}


def test_a_conversation_keeps_its_keys_as_it_grows() -> None:
    first, second = prompt_keys(chat("a")), prompt_keys(chat("a", "b", "c"))
    assert len(first) == 1 and second[:1] == first and len(second) == 3
    assert not set(prompt_keys(chat("x"))) & set(first)
    assert not set(prompt_keys(chat("a", system="Be rude."))) & set(first)
    assert not set(prompt_keys({**chat("a"), "tools": [{"type": "function"}]})) & set(first)
    assert not set(prompt_keys({**chat("a"), "model": "other"})) & set(first)
    assert prompt_keys({**chat("a"), "temperature": 1}) == first


def test_long_texts_have_keys_on_the_way() -> None:
    text = "word " * 1000
    keys = prompt_keys({"prompt": text})
    assert len(keys) == -(-len(text) // PIECE)
    longer = prompt_keys({"prompt": text + "and more"})
    assert longer[: len(keys) - 1] == keys[:-1]
    common = set(prompt_keys(chat("a", system=text))) & set(prompt_keys(chat("b", system=text)))
    assert len(common) >= len(text) // PIECE


@pytest.mark.parametrize(
    "body", [None, [], "text", {}, {"messages": None}, {"temperature": 1}, {"messages": []}]
)
def test_what_has_no_prompt_has_no_keys(body: Any) -> None:
    assert prompt_keys(body) == ()


@pytest.mark.parametrize(
    "body",
    [
        {"messages": 5},
        {"messages": [5, None, "x", [], {"role": []}]},
        {"prompt": [1, 2, 3]},
        {"prompt": ["\ud800", [1]]},
        {"input": {"a": 1}, "system": ["x"], "model": 3},
    ],
)
def test_odd_bodies_have_keys(body: Any) -> None:
    assert prompt_keys(body)


def test_the_owner_is_chosen_unless_it_has_much_more_to_do() -> None:
    memory: PrefixMemory[str] = PrefixMemory()
    first, second = prompt_keys(chat("a")), prompt_keys(chat("a", "b", "c"))
    memory.add(first, "two")
    assert choose(second, memory, {"one": 0, "two": SLACK}) == ["two", "one"]
    assert choose(second, memory, {"one": 0, "two": SLACK + 1}) == ["one", "two"]
    memory.add(second, "one")  # it went there: it is the one with the longest beginning
    assert choose(prompt_keys(chat("a", "b", "c", "d", "e")), memory, {"one": 3, "two": 0})[0] == "one"
    assert choose(first, memory, {"one": 3, "two": 1})[0] == "two"  # both have it
    assert choose(second, memory, {"two": 0, "three": 0})[0] == "two"  # one is gone
    assert choose(second, memory, {}) == []


def test_new_conversations_are_spread_and_stay() -> None:
    loads = {"one": 0, "two": 0, "three": 0}
    memory: PrefixMemory[str] = PrefixMemory()
    chosen = [choose(prompt_keys(chat(f"{i}")), memory, loads)[0] for i in range(300)]
    assert chosen == [choose(prompt_keys(chat(f"{i}")), memory, loads)[0] for i in range(300)]
    assert min(Counter(chosen).values()) > 60
    assert choose(prompt_keys(chat("a")), memory, {"one": 1, "two": 0, "three": 1})[0] == "two"
    assert len(choose((), memory, loads)) == 3


def test_the_memory_is_bounded_and_forgets_the_oldest() -> None:
    memory: PrefixMemory[str] = PrefixMemory(capacity=10)
    for i in range(20):
        memory.add([bytes([i])], "one")
    assert memory.owners([bytes([19])], {"one": 0}) == {"one"}
    assert memory.owners([bytes([9])], {"one": 0}) == set()
