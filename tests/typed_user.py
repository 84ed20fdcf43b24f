"""A program with type hints that uses the package, not run: `mypy tests/typed_user.py` finds nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pyllamacpu import AsyncLlama, Llama, LlamaGrammar, PyllamacpuError, SamplingOptions
from pyllamacpu.llama_cpp import LlamaRAMCache
from pyllamacpu.llama_cpp.llama_types import ChatCompletion, Completion, CompletionChunk
from pyllamacpu.safety import Guard, LlamaFirewall, PromptGuard, Role, ScanDecision, ScannerType, UserMessage

QUESTION = [{"role": "user", "content": "Name three rivers."}]


def complete(path: Path) -> str:
    with Llama(path, n_ctx=4096, type_k="q8_0", lora_path=[("poet.gguf", 1.0)]) as llm:
        llm.set_cache(LlamaRAMCache(1 << 20))
        answer: Completion = llm("The capital of France is", max_tokens=16, temperature=0, dry_multiplier=0.8)
        return answer["choices"][0]["text"]


def choose(llm: Llama, texts: tuple[str, ...]) -> str:
    form = LlamaGrammar.from_choice(texts) if texts else LlamaGrammar.from_json_schema({"type": "object"})
    try:
        return llm.create_completion("hello", None, 8, grammar=form)["choices"][0]["text"]
    except PyllamacpuError:
        return ""


def pieces(llm: Llama) -> Iterator[str]:
    for chunk in llm.create_chat_completion(QUESTION, stream=True):
        yield chunk["choices"][0]["delta"].get("content") or ""
    for event in llm.stream(llm.tokenize("hello"), SamplingOptions(temperature=0.0), max_tokens=4):
        yield event.text


def maybe_streamed(llm: Llama, stream: bool) -> list[CompletionChunk]:
    answer = llm("hello", stream=stream)
    return [answer] if isinstance(answer, dict) else list(answer)


def called(llm: Llama) -> list[str]:
    answer: ChatCompletion = llm.create_chat_completion(QUESTION, tools=[], tool_choice="auto")
    return [call["function"]["name"] for call in answer["choices"][0]["message"].get("tool_calls", [])]


async def answer_soon(path: Path) -> str | None:
    async with AsyncLlama(path, n_ctx=512) as llm:
        async for chunk in await llm.create_chat_completion(QUESTION, stream=True):
            print(chunk["choices"][0]["delta"].get("content", ""), end="")
        return (await llm.create_chat_completion(QUESTION))["choices"][0]["message"]["content"]


def judge(text: str) -> bool:
    verdict, _, probability = Guard("llama-guard.gguf").check([{"role": "user", "content": text}])
    score = PromptGuard("prompt-guard.gguf").score(text)
    firewall = LlamaFirewall({Role.USER: [ScannerType.HIDDEN_ASCII, ScannerType.REGEX]})
    blocked = firewall.scan(UserMessage(text)).decision is ScanDecision.BLOCK
    return verdict == "unsafe" or max(score, probability) > 0.5 or blocked
