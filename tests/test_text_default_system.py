"""The system prompt that a chat template has of its own (text/default_system.py)."""

from __future__ import annotations

import pytest

from pyllamacpu.text.default_system import default_system
from pyllamacpu.text.template import ChatTemplate

SMOL = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are SmolLM.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
)
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
DATED = (
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% set messages = messages[1:] %}"
    "{% else %}{% set s = '' %}{% endif %}SYS Date: 1 Jan\n\n{{ s }}END"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)
REFUSING = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)


@pytest.mark.parametrize(
    ("source", "found"), [(SMOL, "You are SmolLM."), (PLAIN, None), (DATED, None), (REFUSING, None)]
)
def test_default_system(source: str, found: str | None) -> None:
    assert default_system(ChatTemplate(source)) == found
