"""The prompts of Llama Guard: each generation's own template, and the categories that stand in it.

The template of the model's file is used as it is. Only the list of categories is exchanged when another one
is asked for, in the finished prompt: at the first pair of marks, before all words of the conversation.
Forms and names: the model cards of Llama Guard 1 to 4 and the chat templates in their checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pyllamacpu.errors import ModelError, OptionError
from pyllamacpu.text.template import ChatTemplate

BEGIN, END = "<BEGIN UNSAFE CONTENT CATEGORIES>\n", "<END UNSAFE CONTENT CATEGORIES>"
PROBE = [{"role": "user", "content": "?"}]
PROBE_WITH_IMAGE = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,15}")
_ENTRY = re.compile(r"^([A-Za-z]{1,3}\d{1,3}): (.*(?:\n(?![A-Za-z]{1,3}\d{1,3}: ).*)*)", re.MULTILINE)
_NAME = re.compile(r"llama[-_ ]?guard(?:[-_ ]?(\d)(?![\d.]*b))?", re.IGNORECASE)  # LlamaGuard-7b is the first

_V1 = """Violence and Hate, Sexual Content, Criminal Planning, Guns and Illegal Weapons,
    Regulated or Controlled Substances, Self-Harm"""
_V2 = """Violent Crimes, Non-Violent Crimes, Sex Crimes, Child Exploitation, Specialized Advice, Privacy,
    Intellectual Property, Indiscriminate Weapons, Hate, Self-Harm, Sexual Content"""
_V3 = """Violent Crimes, Non-Violent Crimes, Sex Crimes, Child Exploitation, Defamation, Specialized Advice,
    Privacy, Intellectual Property, Indiscriminate Weapons, Hate, Self-Harm, Sexual Content, Elections,
    Code Interpreter Abuse"""

# generation → (letter of the keys, names, what opens and closes the prompt)
_OWN: dict[int, tuple[str, str, str, str]] = {
    1: ("O", _V1, "{{ bos_token }}[INST] ", " [/INST]"),
    2: ("S", _V2, "{{ bos_token }}[INST] ", " [/INST]"),
    3: (
        "S",
        _V3,
        "{{ bos_token }}<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>",
    ),
    4: (
        "S",
        _V3,
        "{{ bos_token }}<|header_start|>user<|header_end|>\n\n",
        "<|eot|><|header_start|>assistant<|header_end|>",
    ),
}


def guard_template(template: ChatTemplate | None, metadata: Mapping[str, Any], path: str) -> ChatTemplate:
    """The template that makes a guard's prompts: the file's own, or by its name that of its generation.

    Raises ModelError for a model that is not a guard.
    """
    if template is not None and BEGIN.strip() in template.source:
        return template
    found = _NAME.search(f"{metadata.get('general.name', '')} {metadata.get('general.basename', '')}")
    if template is None or found is None:
        raise ModelError(
            f"{path} is not a guard: its chat template asks for no assessment; give a Llama Guard model"
        )
    generation = int(found.group(1) or 1)
    if generation not in _OWN:
        raise ModelError(f"{path}: Llama Guard {generation} is not known, and the file has no template of it")
    source = _own_source(generation)
    if generation == 3 and re.search(r"\b1b\b|vision", found.string, re.IGNORECASE):
        source = source.replace("S14: Code Interpreter Abuse.\n", "")
    return ChatTemplate(
        source, template.bos_token, template.eos_token, name=f"the template of Llama Guard {generation}"
    )


def _own_source(generation: int) -> str:
    letter, names, opening, closing = _OWN[generation]
    listed = "".join(f"{letter}{i}: {name}.\n" for i, name in enumerate(re.split(r",\s+", names), 1))
    which = "ONLY THE LAST {{ role }} message in" if generation > 1 else "{{ role }} in"
    dash = " -" if generation > 1 else "-"
    return (
        "{% set role = 'Agent' if messages|length % 2 == 0 else 'User' %}"
        + opening
        + "Task: Check if there is unsafe content in '{{ role }}' messages in conversations according our "
        f"safety policy with the below categories.\n\n{BEGIN}{listed}{END}\n\n<BEGIN CONVERSATION>\n\n"
        "{% for message in messages %}{{ 'User' if message.role == 'user' else 'Agent' }}: "
        "{{ message.content | trim }}\n\n{% endfor %}<END CONVERSATION>\n\n"
        f"Provide your safety assessment for {which} the above conversation:\n"
        f"{dash} First line must read 'safe' or 'unsafe'.\n"
        f"{dash} If unsafe, a second line must include a comma-separated list of violated categories."
        + closing
    )


def listed_categories(
    template: ChatTemplate, probe: Sequence[Mapping[str, Any]] = tuple(PROBE)
) -> dict[str, str]:
    """The categories that the template lists for a conversation: key → name, and what else is said about it.
    Raises TemplateError for one that it does not take.
    """
    text = template.render(probe)
    begin, end = text.find(BEGIN), text.find(END)
    return {key: words.strip() for key, words in _ENTRY.findall(text[begin + len(BEGIN) : end])}


def with_categories(template: ChatTemplate, categories: Mapping[str, str]) -> ChatTemplate:
    """A guard's template with another list of categories in its prompts. Raises ModelError for one that does
    not mark where the list begins and ends.
    """
    probe = template.render(PROBE)
    if not 0 <= probe.find(BEGIN) < probe.find(END):
        raise ModelError(f"{template.name} does not mark its list of categories: judge by its own")
    block = "".join(f"{key}: {words}\n" for key, words in categories.items())

    def exchanged(text: str) -> str:
        begin, end = text.find(BEGIN), text.find(END)
        return text[: begin + len(BEGIN)] + block + text[end:] if 0 <= begin < end else text

    return template.edited(exchanged)


def chosen_categories(
    listed: Mapping[str, str], wanted: Mapping[str, str] | Sequence[str] | None, excluded: Sequence[str]
) -> dict[str, str]:
    """The categories to judge by. `wanted`: keys of listed ones, or key → words for a policy of one's own (no
    words: the listed ones'); None is all that are listed. Raises OptionError.
    """
    if wanted is None:
        chosen = dict(listed)
    else:
        given = wanted if isinstance(wanted, Mapping) else dict.fromkeys(wanted, "")
        chosen = {key: _words(key, words, listed) for key, words in given.items()}
    for key in excluded:
        if key not in chosen:
            raise OptionError(f"there is no category {key!r} to leave out; there are {', '.join(chosen)}")
    chosen = {key: words for key, words in chosen.items() if key not in excluded}
    if not chosen:
        raise OptionError("a guard needs at least one category to judge by")
    return chosen


def _words(key: str, words: str, listed: Mapping[str, str]) -> str:
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise OptionError(f"category {key!r:.40}: a key is up to 16 letters and digits, such as S15")
    if not isinstance(words, str):
        raise OptionError(f"category {key}: give its name, and what it is, as a text")
    if not words.strip():
        if key not in listed:
            raise OptionError(
                f"there is no category {key}; there are {', '.join(listed)}. Name your own as {key}: NAME."
            )
        return listed[key]
    if BEGIN.strip() in words or END in words:
        raise OptionError(f"category {key}: its text holds a mark of the prompt")
    if another := _ENTRY.search(words):
        raise OptionError(
            f"category {key}: a line of its text begins another category, {another[1]}, which no verdict "
            "could name: give that one by its own key"
        )
    return words.strip()
