"""Llama Guard 4 with images, on a tiny Llama 4: several of them, in the turns where they stand.

Covers safety/guard.py, safety/guard_prompts.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama4_vision_models import PATCH, PER_TILE, llama4_vision, opened, with_words

from pyllamacpu.safety import Guard
from pyllamacpu.safety.conversation import judged_part
from pyllamacpu.safety.guard_prompts import BEGIN, END

__all__ = ["llama4_vision"]
PICTURE = np.random.default_rng(7).integers(0, 256, (40, 40, 3), np.uint8)
OTHER = PICTURE[::-1].copy()
GUARD = (
    "{{ bos_token }}<|header_start|>user<|header_end|>{% set ns = namespace(images=0) %}"
    "{% for message in messages %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{% set ns.images = ns.images + 1 %}{% endfor %}{% endfor %}task:\n\n"
    + BEGIN + "S1: crimes.\n{% if not ns.images %}S14: code.\n{% endif %}" + END + "\n\n"
    "{% for message in messages %}{{ message['role'] }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|image|>"
    "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}\n\n{% endfor %}<|eot|>"
)  # fmt: skip


def asked(*images: Any) -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "what is this?"}]}]


def test_images_are_judged(llama4_vision: Path, tmp_path: Path) -> None:
    with opened(with_words(llama4_vision, tmp_path, GUARD)) as model:
        guard = Guard(model, threshold=1 - 1e-9)  # this vocabulary has no letters for categories
        assert set(guard.categories) == {"S1", "S14"}
        assert set(guard._of_images) == {"S1"}
        words, one, other, both = (
            guard.check(conversation)
            for conversation in ("what is this?", asked(PICTURE), asked(OTHER), asked(PICTURE, OTHER))
        )
        assert len({verdict.probability for verdict in (words, one, other, both)}) == 4
        messages = judged_part([*asked(PICTURE, OTHER), {"role": "assistant", "content": "a cat."}])
        ids, images = guard.question(messages)
        assert len(images) == 2
        assert model.engine.images.visible(ids).count(PATCH) == 2 * PER_TILE
        plain = model.engine.images.visible(guard.question(judged_part(asked(PICTURE)))[0])
        row = model.logits(plain, images=[PICTURE])[-1]
        if int(row[[guard._safe, guard._unsafe, *guard._blanks]].argmax()) < 2:
            margin = float(row[guard._safe] - row[guard._unsafe])
            assert one.probability == pytest.approx(1 / (1 + np.exp(margin)), abs=1e-6)
