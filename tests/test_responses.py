"""api/responses.py: where tokens begin in the text. api/sampling_arguments.py: signatures from one list."""

from __future__ import annotations

import inspect
import random
from typing import Any

import pytest
from tiny_llama import llm, nothing_was_warned_of, path  # noqa: F401
from tiny_model import byte

from pyllamacpu import Llama
from pyllamacpu.api.responses import LogprobWriter
from pyllamacpu.api.sampling_arguments import with_sampling
from pyllamacpu.errors import OptionError


def test_offsets_count_whole_characters(llm: Llama) -> None:  # noqa: F811
    chance = random.Random(1)
    tokens = [byte(chance.choice([0xC3, 0xA9, 0x41, 0xE6, 0x97, 0xA5, 0xFF])) for _ in range(200)]
    table = LogprobWriter(llm.text_tokenizer, 7).table(tokens)
    texts = [llm.detokenize(tokens[:i]).decode("utf-8", "ignore") for i in range(200)]
    assert table["text_offset"] == [7 + len(text) for text in texts]


class Recorded:
    @with_sampling("prompt temperature top_p echo top_k", temperature=0.3)
    def call(self, prompt: str, *, echo: bool = False, **sampling: Any) -> Any:
        """Documented."""
        return prompt, echo, sampling


def test_sampling_keywords_have_their_places_and_defaults() -> None:
    plain = {"temperature": 0.3, "top_p": 0.95, "top_k": 40}
    assert Recorded().call("a") == ("a", False, plain)
    assert Recorded().call("a", 0.7, 0.5, True, 3) == (
        "a",
        True,
        {"temperature": 0.7, "top_p": 0.5, "top_k": 3},
    )
    assert Recorded().call("a", dry_base=2.0) == ("a", False, {**plain, "dry_base": 2.0})
    assert Recorded().call("a", temp=0.9) == ("a", False, {"temp": 0.9, "top_p": 0.95, "top_k": 40})
    for wrong in ((), ("a", 1, 2, 3, 4, 5)):
        with pytest.raises(TypeError):
            Recorded().call(*wrong)
    with pytest.raises(TypeError, match="multiple values"):
        Recorded().call("a", 0.7, temperature=0.8)


def test_signatures_are_llama_cpp_pythons() -> None:
    def names(method: Any) -> list[str]:
        return list(inspect.signature(method).parameters)

    assert names(Llama.create_completion)[:7] == [
        "self",
        "prompt",
        "suffix",
        "max_tokens",
        "temperature",
        "top_p",
        "min_p",
    ]
    assert names(Llama.create_chat_completion)[6:10] == ["temperature", "top_p", "top_k", "min_p"]
    assert inspect.signature(Llama.create_chat_completion).parameters["temperature"].default == 0.2
    assert names(Llama.sample)[1:6] == ["top_k", "top_p", "min_p", "typical_p", "temp"]
    assert names(Llama.generate)[1:8] == [
        "tokens",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "temp",
        "repeat_penalty",
    ]
    for method in (Llama.create_completion, Llama.create_chat_completion, Llama.sample, Llama.generate):
        assert "mirostat_tau: float = 5.0" in str(inspect.signature(method)).replace("'", "")
        assert method.__doc__


def test_one_option_under_two_names_is_an_error(llm: Llama) -> None:  # noqa: F811
    with pytest.raises(OptionError, match="twice"):
        llm("a", temp=0.5, temperature=0.6)
