"""For type checkers: the keywords of calls that answer as a whole, or with `stream` piece by piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from pyllamacpu.api.sampling_arguments import SamplingKeywords

Prompt: TypeAlias = str | Sequence[int]


class CompletionKeywords(SamplingKeywords, total=False):
    """Of `Llama.create_completion`, beside `prompt` and `stream`."""

    suffix: str | None
    max_tokens: int | None
    logprobs: int | None
    echo: bool
    stop: str | Sequence[str] | None
    seed: int | None
    tfs_z: float
    model: str | None
    stopping_criteria: Any
    logits_processor: Any
    grammar: Any


class ChatKeywords(SamplingKeywords, total=False):
    """Of `Llama.create_chat_completion`, beside `messages` and `stream`."""

    functions: Sequence[Any] | None
    function_call: str | Mapping[str, Any] | None
    tools: Sequence[Any] | None
    tool_choice: str | Mapping[str, Any] | None
    stop: str | Sequence[str] | None
    seed: int | None
    response_format: Mapping[str, Any] | None
    max_tokens: int | None
    tfs_z: float
    model: str | None
    logits_processor: Any
    grammar: Any
    logprobs: bool | None
    top_logprobs: int | None
    parallel_tool_calls: bool | None
