"""Formatters and handlers of chats, by name and of a program's own.

Covers api/chat_handlers.py, llama_cpp/llama_chat_format.py, text/named_formats.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import llm, nothing_was_warned_of, path  # noqa: F401

import pyllamacpu.llama_cpp.llama_chat_format as llama_chat_format
from pyllamacpu import Llama
from pyllamacpu.api.chat_handlers import registered_handler
from pyllamacpu.errors import OptionError
from pyllamacpu.text.named_formats import NAMED_FORMATS

FIXTURE = Path(__file__).parent / "fixtures" / "named_formats.json"
MADE = json.loads(FIXTURE.read_text(encoding="utf-8"))
QUESTION = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize("name", MADE["prompts"])
def test_prompts_are_those_of_llama_cpp_python(name: str) -> None:
    formatter = llama_chat_format.named_formatter(name)
    for kind, prompt in MADE["prompts"][name].items():
        assert formatter(messages=MADE["messages"][kind]).prompt == prompt


@pytest.mark.parametrize("name", NAMED_FORMATS)
def test_every_message_is_in_every_prompt(name: str) -> None:
    prompt = llama_chat_format.named_formatter(name)(messages=MADE["messages"]["system and turns"]).prompt
    assert all(message["content"] in prompt for message in MADE["messages"]["system and turns"])


def test_names_are_those_of_llama_cpp_python() -> None:
    named = set(MADE["prompts"]) | {"openbuddy", "open-orca", "intel", "chatml-function-calling"}
    assert named == set(NAMED_FORMATS)
    assert llama_chat_format.format_llama2(messages=QUESTION).prompt == " <s>[INST]hello  [/INST]"
    assert llama_chat_format.format_gemma(messages=QUESTION).stop == "<end_of_turn>\n"
    with pytest.raises(AttributeError, match="format_nonsense"):
        _ = llama_chat_format.format_nonsense


@pytest.mark.parametrize("name", ["vicuna", "alpaca", "chatglm3", "phind"])
def test_a_name_gives_its_prompt(path: Path, name: str) -> None:
    prompt = llama_chat_format.named_formatter(name)(messages=QUESTION).prompt
    with Llama(str(path), n_ctx=256, chat_format=name) as llm:
        asked = llm.create_chat_completion(QUESTION, max_tokens=1)["usage"]["prompt_tokens"]
        assert asked == len(llm.tokenize(prompt.encode(), special=True))
        handler = llama_chat_format.get_chat_completion_handler(name)
        answers = [
            answer["choices"][0]["message"]["content"]
            for answer in (
                llm.create_chat_completion(QUESTION, max_tokens=6, temperature=0.0),
                handler(llama=llm, messages=QUESTION, max_tokens=6, temperature=0.0),
            )
        ]
        assert answers[0] == answers[1]


@pytest.fixture
def unregister() -> Any:
    names: list[str] = []
    yield names.append
    for name in names:
        llama_chat_format.LlamaChatCompletionHandlerRegistry().unregister_chat_handler(name)


def test_a_format_of_ones_own(path: Path, unregister: Any) -> None:
    @llama_chat_format.register_chat_format("mine")
    def mine(messages: Any, **kwargs: Any) -> llama_chat_format.ChatFormatterResponse:
        return llama_chat_format.ChatFormatterResponse(prompt="hello the", stop="zz")

    unregister("mine")
    with Llama(str(path), n_ctx=128, chat_format="mine") as llm:
        answer = llm.create_chat_completion(
            QUESTION, max_tokens=4, temperature=0.0, logprobs=True, top_logprobs=2
        )
        want = llm("hello the", max_tokens=4, temperature=0.0, stop="zz")
        assert answer["choices"][0]["message"]["content"] == want["choices"][0]["text"]
        assert answer["object"] == "chat.completion" and answer["usage"] == want["usage"]
        assert len(answer["choices"][0]["logprobs"]["content"]) == 4
        chunks = list(llm.create_chat_completion(QUESTION, max_tokens=4, temperature=0.0, stream=True))
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant"}
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert text == want["choices"][0]["text"]
        form = llm.create_chat_completion(QUESTION, response_format={"type": "json_object"}, max_tokens=3)
        assert form["choices"][0]["message"]["content"].lstrip().startswith("{")
        with pytest.raises(OptionError, match="does not show the model any tools"):
            llm.create_chat_completion(QUESTION, tools=[{"type": "function", "function": {"name": "f"}}])


def test_a_handler_of_ones_own(path: Path, unregister: Any) -> None:
    @llama_chat_format.register_chat_completion_handler("echo")
    def echo(*, llama: Any, messages: Any, **kwargs: Any) -> Any:
        return [llama.n_ctx(), messages, kwargs["temperature"]]

    unregister("echo")
    registry = llama_chat_format.LlamaChatCompletionHandlerRegistry()
    with pytest.raises(OptionError, match="registered already"):
        registry.register_chat_completion_handler("echo", echo)
    with Llama(str(path), n_ctx=128, chat_format="echo") as llm:
        assert llm.create_chat_completion(QUESTION, temperature=0.5) == [128, QUESTION, 0.5]
    with pytest.raises(llama_chat_format.LlamaChatCompletionHandlerNotFoundException, match="nonsense"):
        llama_chat_format.get_chat_completion_handler("nonsense")


SOURCE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"


def test_templates_as_formatters(llm: Llama) -> None:
    config = {"chat_template": SOURCE, "bos_token": "<s>", "eos_token": "</s>"}
    made = llama_chat_format.hf_tokenizer_config_to_chat_formatter(config)(messages=QUESTION)
    assert made.prompt == "<s><user>hello</s><assistant></s>" and made.added_special
    with pytest.raises(OptionError, match="eos_token"):
        llama_chat_format.hf_tokenizer_config_to_chat_formatter({"chat_template": SOURCE, "bos_token": "a"})
    with pytest.raises(OptionError, match="eos_token"):
        llama_chat_format.hf_tokenizer_config_to_chat_formatter(None)  # type: ignore[arg-type]
    formatter = llama_chat_format.Jinja2ChatFormatter(SOURCE, "</s>", "<s>", stop_token_ids=[7])
    answer = formatter(messages=QUESTION)
    assert (answer.prompt, answer.stop) == ("<s><user>hello</s>", ["</s>"])
    assert answer.stopping_criteria is not None
    assert answer.stopping_criteria([1, 7], None) and not answer.stopping_criteria([7, 1], None)  # type: ignore
    done = formatter.to_chat_handler()(llama=llm, messages=QUESTION, max_tokens=2)
    assert done["usage"]["prompt_tokens"] == len(llm.tokenize(answer.prompt.encode(), special=True))


def test_formats_are_guessed_by_their_tokens() -> None:
    guess = llama_chat_format.guess_chat_format_from_gguf_metadata
    assert guess({}) is None
    assert guess({"tokenizer.chat_template": llama_chat_format.CHATML_CHAT_TEMPLATE}) == "chatml"
    assert guess({"tokenizer.chat_template": llama_chat_format.LLAMA3_INSTRUCT_CHAT_TEMPLATE}) == "llama-3"
    assert (
        guess({"tokenizer.chat_template": llama_chat_format.MISTRAL_INSTRUCT_CHAT_TEMPLATE})
        == "mistral-instruct"
    )
    assert guess({"tokenizer.chat_template": "{{ messages }}"}) is None


def test_only_a_programs_own_handlers_take_the_place_of_a_template(unregister: Any) -> None:
    assert all(registered_handler(name) is None for name in NAMED_FORMATS)
    llama_chat_format.register_chat_completion_handler("own")(print)
    unregister("own")
    assert registered_handler("own") is print


def test_handlers_of_images_say_what_to_do_without_them() -> None:
    with pytest.raises(OptionError, match="need no handler"):
        llama_chat_format.Llava15ChatHandler(clip_model_path="x")
