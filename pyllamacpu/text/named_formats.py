"""Prompt formats that llama-cpp-python has by name (`chat_format="vicuna"`), as facts about its prompts.

The prompt's tokens are the same here, but for what would lose words or let people's text be control tokens:

- A system message is in the prompt of every format. There it is left out by vicuna, openbuddy, phind,
  open-orca, intel, snoozy (partly), mistral-instruct and gemma. Formats with a fixed system text have the
  caller's in its place; mistral-instruct and gemma, which have no place for one, put it before the first
  user's words.
- openbuddy's and open-orca's long fixed system texts are not here: give yours as a message.
- open-orca: the turns are in the prompt (there the roles' names do not match, and it has none). intel: no
  "{system_message}" in place of the message. saiga: the assistant's turns are the bot's.
- BOS is there once, also where the format spells another one at the start (saiga; llama-2 has one for
  each user turn).
- Spellings of control tokens in people's words stay text.
- functionary and its versions, whose prompts come with a tokenizer of their own, are not here;
  chatml-function-calling is its form without tools.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyllamacpu.text.formats import Format, joined_lines

_SPLIT = """
{%- set found = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | list -%}
{%- set turns = messages | rejectattr('role', 'equalto', 'system') | list -%}
"""


def _text(words: str) -> str:
    """A literal of Jinja."""
    escaped = words.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


@dataclass(frozen=True)
class Turns:
    """A format that is a system text, then for each turn a header, the words and an end, then a header."""

    user: str
    assistant: str
    end: str
    answer: str = ""  # the header of the answer to come
    after_assistant: str | None = None  # another end for every second turn
    before_system: str = ""
    after_system: str = ""
    system: str = ""  # when no message gives one
    stop: tuple[str, ...] = ()

    def format(self) -> Format:
        """The format as a template."""
        system = f"found | join('\\n\\n') if found else {_text(self.system)}"
        second = self.end if self.after_assistant is None else self.after_assistant
        end = f"[{_text(self.end)}, {_text(second)}][loop.index0 % 2]"
        lines = (
            _SPLIT,
            f"{{{{- {_text(self.before_system)} + ({system}) + {_text(self.after_system)} -}}}}",
            "{%- for m in turns -%}",
            f"{{%- if m['role'] == 'user' -%}}{{{{- {_text(self.user)} + m['content'] + {end} -}}}}",
            "{%- elif m['role'] == 'assistant' -%}",
            f"{{{{- {_text(self.assistant)} + m['content'] + {end} -}}}}",
            "{%- endif -%}{%- endfor -%}",
            f"{{%- if add_generation_prompt -%}}{{{{- {_text(self.answer)} -}}}}{{%- endif -%}}",
        )
        return Format(joined_lines("".join(lines)), stop_strings=self.stop)


def _headed(user: str, assistant: str, end: str, colon: str = ": ", answer: str = ":", **more: str) -> Turns:
    """Headers such as "User: "."""
    stop = (more.pop("stop"),) if "stop" in more else ()
    return Turns(user + colon, assistant + colon, end, assistant + answer, stop=stop, **more)


def _lined(
    user: str, assistant: str, end: str, before_system: str, system: str = "", stop: str | None = None
) -> Turns:
    """Headers, words and ends on lines of their own."""
    return Turns(
        user + "\n",
        assistant + "\n",
        end + "\n",
        assistant + "\n",
        before_system=before_system,
        after_system=end + "\n",
        system=system,
        stop=(stop or end,),
    )


_TURNS: dict[str, Turns] = {
    "alpaca": Turns(
        "### Instruction: ", "### Response: ", "\n\n", after_assistant="</s>", after_system="\n\n"
    ),
    "qwen": _lined(
        "<|im_start|>user",
        "<|im_start|>assistant",
        "<|im_end|>",
        "<|im_start|>system\n",
        "You are a helpful assistant.",
        "<|endoftext|>",
    ),
    "vicuna": _headed(
        "USER",
        "ASSISTANT",
        " ",
        after_assistant="</s>",
        after_system=" ",
        system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    ),
    "oasst_llama": Turns(
        "<|prompter|>",
        "<|assistant|>",
        "</s>",
        "<|assistant|>",
        before_system="[INST] <<SYS>>\n",
        after_system="\n<</SYS>>\n\n",
    ),
    "baichuan-2": Turns("<reserved_106>", "<reserved_107>", "", "<reserved_107>"),
    "baichuan": Turns("<reserved_102>", "<reserved_103>", "", "<reserved_103>"),
    "openbuddy": _headed("User", "Assistant", "\n", after_system="\n"),
    "redpajama-incite": _headed("<human>", "<bot>", "\n", after_system="\n", stop="<human>"),
    "snoozy": _headed(
        "### Prompt",
        "### Response",
        "\n",
        after_system="\n",
        system="The prompt below is a question to answer, a task to complete, or a conversation to "
        "respond to; decide which and write an appropriate response.",
        stop="###",
    ),
    "phind": _headed(
        "### User Message",
        "### Assistant",
        "\n\n",
        before_system="### System Prompt\n",
        after_system="\n\n",
        system="You are an intelligent programming assistant.",
    ),
    "intel": _headed("### User:", "### Assistant:", "\n", before_system="### System:\n", after_system="\n"),
    "open-orca": _headed(
        "User",
        "Assistant",
        "<|end_of_turn|>\n",
        answer=": ",
        after_system="<|end_of_turn|>\n",
        stop="User",
    ),
    "mistrallite": Turns(
        "<|prompter|>",
        "</s>\n<|assistant|>",
        " ",
        "</s>\n<|assistant|>",
        before_system="<|system|>",
        after_system="</s>",
    ),
    "zephyr": _lined("<|user|>\n", "<|assistant|>\n", "</s>", "<|system|>\n"),
    "pygmalion": _lined("<|user|>", "<|model|>", "\n", "<|system|>"),
    "chatml": _lined("<|im_start|>user", "<|im_start|>assistant", "<|im_end|>", "<|im_start|>system\n"),
    "chatglm3": Turns(
        "<|user|>\n ",
        "<|assistant|>\n ",
        "",
        "<|assistant|>",
        before_system="<|system|>\n",
        stop=("</s>",),
    ),
    "openchat": Turns(
        "GPT4 Correct User: \n",
        "<|end_of_turn|>GPT4 Correct Assistant: \n",
        "<|end_of_turn|>\n",
        "<|end_of_turn|>GPT4 Correct Assistant: \n",
        after_system="<|end_of_turn|><|end_of_turn|>\n",
        stop=("<|end_of_turn|>",),
    ),
}

# The first user's words begin with the system message.
_WITH_SYSTEM = """
{%- set system = (found | join('\\n\\n') + '\\n\\n') if found else '' -%}
"""

_OTHERS: dict[str, Format] = {
    "llama-2": Format(
        joined_lines(
            _SPLIT
            + r"""
{%- set system = found | join('\n\n') -%}
{{- ('[INST] <<SYS>>\n' + system + '\n<</SYS>>' if system else '') + ' ' -}}
{%- for m in turns -%}
  {%- set end = [' ', '</s>'][loop.index0 % 2] -%}
  {%- if system and loop.first -%}{{- m['content'] + end -}}
  {%- elif m['role'] == 'user' -%}{{- '<s>[INST]' + m['content'] + ' ' + end -}}
  {%- elif m['role'] == 'assistant' -%}{{- '[/INST]' + m['content'] + ' ' + end -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '[/INST]' -}}{%- endif -%}
"""
        )
    ),
    "llama-3": Format(
        joined_lines(
            r"""
{%- for m in messages if m['role'] in ['system', 'user', 'assistant'] -%}
  {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}
"""
        ),
        stop_strings=("<|eot_id|>",),
    ),
    "mistral-instruct": Format(
        joined_lines(
            _SPLIT
            + _WITH_SYSTEM
            + r"""
{%- for m in turns -%}
  {%- if m['role'] == 'user' -%}{{- '[INST] ' + (system if loop.first else '') + m['content'] -}}
  {%- elif m['role'] == 'assistant' -%}{{- ' [/INST]' + m['content'] + '</s>' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ' [/INST]' -}}{%- endif -%}
"""
        ),
        stop_strings=("</s>",),
    ),
    "saiga": Format(
        joined_lines(
            r"""
{%- for m in messages if m['role'] in ['system', 'user', 'assistant', 'bot'] -%}
  {{- '<s>' + ('bot' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] + '</s>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<s>bot' -}}{%- endif -%}
"""
        )
    ),
    "gemma": Format(
        joined_lines(
            _SPLIT
            + _WITH_SYSTEM
            + r"""
{%- for m in turns -%}
  {%- if m['role'] == 'user' -%}
    {{- '<start_of_turn>user\n' + (system if loop.first else '') + m['content'] + '<end_of_turn>\n' -}}
  {%- elif m['role'] == 'assistant' -%}
    {{- '<start_of_turn>model\n' + m['content'] + '<end_of_turn>\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}
"""
        ),
        stop_strings=("<end_of_turn>\n",),
    ),
    "chatml-function-calling": Format(
        joined_lines(
            r"""
{%- for m in messages -%}
  {{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""
        ),
        stop_strings=("<|im_end|>",),
    ),
}

NAMED_FORMATS: dict[str, Format] = {**{name: turns.format() for name, turns in _TURNS.items()}, **_OTHERS}


def find_named(name: str) -> tuple[str, Format] | None:
    """The format of exactly this name, with its name; None if there is none."""
    return (name, NAMED_FORMATS[name]) if name in NAMED_FORMATS else None
