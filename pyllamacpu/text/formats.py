"""Prompt formats by name, for files that carry no chat template of their own.

Each is a Jinja template written after the model's documentation: Llama 2, 3, 4 and Code Llama 70B from Meta's
prompt guides, Vicuna and WizardLM from FastChat's conversation pages, Alpaca, ChatML, Mistral and Zephyr from
their model cards.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """`stop_tokens` are token spellings and `stop_strings` texts that end the assistant's turn."""

    source: str
    stop_tokens: tuple[str, ...] = ()
    stop_strings: tuple[str, ...] = ()


def joined_lines(source: str) -> str:
    """Templates are written on several lines for reading; line breaks and indents are not part of them."""
    return "".join(line.strip() for line in source.splitlines())


# The system message, if there is one, and the rest: for formats that put it inside the first user turn.
_TAKE_SYSTEM = """
{%- if messages and messages[0]['role'] == 'system' -%}
  {%- set system = messages[0]['content'] | trim -%}{%- set turns = messages[1:] -%}
{%- else -%}
  {%- set system = '' -%}{%- set turns = messages -%}
{%- endif -%}
"""
_ALTERNATE = """
{%- for m in turns -%}
  {%- if m['role'] != ['user', 'assistant'][loop.index0 % 2] -%}
    {{- raise_exception('after the system message, user and assistant must take turns, the user first') -}}
  {%- endif -%}
{%- endfor -%}
"""

LLAMA2 = Format(
    joined_lines(
        _TAKE_SYSTEM
        + _ALTERNATE
        + r"""
{%- for m in turns -%}
  {%- if m['role'] == 'user' -%}
    {{- bos_token + '[INST] ' -}}
    {%- if loop.first and system -%}{{- '<<SYS>>\n' + system + '\n<</SYS>>\n\n' -}}{%- endif -%}
    {{- m['content'] | trim + ' [/INST]' -}}
  {%- else -%}
    {{- ' ' + m['content'] | trim + ' ' + eos_token -}}
  {%- endif -%}
{%- endfor -%}
"""
    ),
    stop_tokens=("</s>",),
)

LLAMA3 = Format(
    joined_lines(
        r"""
{{- bos_token -}}
{%- for m in messages -%}
  {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}
"""
    ),
    stop_tokens=("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
)

LLAMA4 = Format(
    joined_lines(
        r"""
{{- bos_token -}}
{%- for m in messages -%}
  {{- '<|header_start|>' + m['role'] + '<|header_end|>\n\n' + m['content'] | trim + '<|eot|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|header_start|>assistant<|header_end|>\n\n' -}}{%- endif -%}
"""
    ),
    stop_tokens=("<|eot|>", "<|eom|>", "<|end_of_text|>"),
)

CODELLAMA_70B = Format(
    joined_lines(
        r"""
{{- bos_token -}}
{%- for m in messages -%}
  {{- 'Source: ' + m['role'] + '\n\n ' + m['content'] | trim + ' <step> ' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Source: assistant\nDestination: user\n\n ' -}}{%- endif -%}
"""
    ),
    stop_tokens=("<step>",),
    stop_strings=("<step>", "Source: "),
)

VICUNA = Format(
    joined_lines(
        _TAKE_SYSTEM
        + r"""
{{- bos_token -}}
{%- if system -%}{{- system -}}
{%- else -%}
  {{- 'A chat between a curious user and an artificial intelligence assistant. ' -}}
  {{- "The assistant gives helpful, detailed, and polite answers to the user's questions." -}}
{%- endif -%}
{{- ' ' -}}
{%- for m in turns -%}
  {%- if m['role'] == 'assistant' -%}{{- 'ASSISTANT: ' + m['content'] | trim + eos_token -}}
  {%- else -%}{{- 'USER: ' + m['content'] | trim + ' ' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""
    ),
    stop_tokens=("</s>",),
    stop_strings=("USER:",),
)

ALPACA = Format(
    joined_lines(
        _TAKE_SYSTEM
        + r"""
{{- bos_token -}}
{%- if system -%}{{- system + '\n\n' -}}
{%- else -%}
  {{- 'Below is an instruction that describes a task. ' -}}
  {{- 'Write a response that appropriately completes the request.\n\n' -}}
{%- endif -%}
{%- for m in turns -%}
  {%- if m['role'] == 'assistant' -%}{{- '### Response:\n' + m['content'] | trim + eos_token + '\n\n' -}}
  {%- else -%}{{- '### Instruction:\n' + m['content'] | trim + '\n\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '### Response:\n' -}}{%- endif -%}
"""
    ),
    stop_tokens=("</s>",),
    stop_strings=("### ",),
)

CHATML = Format(
    joined_lines(
        r"""
{%- for m in messages -%}
  {{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""
    ),
    stop_tokens=("<|im_end|>",),
    stop_strings=("<|im_end|>",),
)

MISTRAL = Format(
    joined_lines(
        _TAKE_SYSTEM
        + _ALTERNATE
        + r"""
{{- bos_token -}}
{%- for m in turns -%}
  {%- if m['role'] == 'user' -%}
    {{- '[INST] ' -}}
    {%- if loop.first and system -%}{{- system + '\n\n' -}}{%- endif -%}
    {{- m['content'] + ' [/INST]' -}}
  {%- else -%}
    {{- ' ' + m['content'] | trim + eos_token -}}
  {%- endif -%}
{%- endfor -%}
"""
    ),
    stop_tokens=("</s>",),
)

ZEPHYR = Format(
    joined_lines(
        r"""
{%- for m in messages -%}
  {{- '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\n' -}}{%- endif -%}
"""
    ),
    stop_tokens=("</s>",),
    stop_strings=("<|user|>",),
)

FORMATS: dict[str, Format] = {
    "llama2": LLAMA2,
    "llama3": LLAMA3,
    "llama4": LLAMA4,
    "codellama-70b": CODELLAMA_70B,
    "vicuna": VICUNA,
    "wizardlm": VICUNA,  # WizardLM 1.1 and later, and WizardMath, were trained on Vicuna's format
    "alpaca": ALPACA,
    "chatml": CHATML,
    "orca": CHATML,  # Orca 2; OpenOrca
    "mistral": MISTRAL,
    "zephyr": ZEPHYR,
}
ALIASES = {
    "llama-2": "llama2",
    "llama-3": "llama3",
    "llama-3.1": "llama3",
    "llama-3.2": "llama3",
    "llama-3.3": "llama3",
    "llama-4": "llama4",
    "codellama": "llama2",
    "mistral-instruct": "mistral",
    "qwen": "chatml",
    "smollm2": "chatml",
    "chat-ml": "chatml",
    "orca-2": "orca",
    "tinyllama": "zephyr",
    "wizardlm2": "wizardlm",
    "meditron": "chatml",
}


def find_format(name: str) -> tuple[str, Format] | None:
    """The format of this name or alias (case does not matter), with its own name; None if there is none."""
    key = name.strip().lower().replace("_", "-")
    key = ALIASES.get(key, key)
    return (key, FORMATS[key]) if key in FORMATS else None
