"""Writes tests/fixtures/named_formats.json: the prompts that llama-cpp-python's formats make.

    pip install llama-cpp-python        # 0.3.36 was used
    python tools/make_named_formats_fixture.py

Prompts that differ on purpose are left out: see pyllamacpu/text/named_formats.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FIXTURE = Path(__file__).parent.parent / "tests" / "fixtures" / "named_formats.json"
TURNS = [
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "How are you?"},
]
SYSTEM = {"role": "system", "content": "Be brief."}
MESSAGES = {
    "question": TURNS[:1],
    "turns": TURNS,
    "system": [SYSTEM, TURNS[0]],
    "system and turns": [SYSTEM, *TURNS],
}
NAMES = (
    "llama-2 llama-3 alpaca qwen vicuna oasst_llama baichuan-2 baichuan redpajama-incite snoozy phind "
    "mistrallite zephyr pygmalion chatml mistral-instruct chatglm3 openchat saiga gemma"
)
# Functions that are not called after their format's name.
FUNCTIONS = {
    "llama-2": "format_llama2",
    "llama-3": "format_llama3",
    "baichuan-2": "format_baichuan2",
    "vicuna": "format",
}
DIFFERENT = {
    **dict.fromkeys(("vicuna", "phind", "mistral-instruct", "gemma"), ("system", "system and turns")),
    "saiga": ("turns", "system and turns"),
}


def prompts(module: Any) -> dict[str, dict[str, str]]:
    """Of each format, of each conversation."""
    found = {}
    for name in NAMES.split():
        formatter = getattr(module, FUNCTIONS.get(name, "format_" + name.replace("-", "_")))
        kinds = [kind for kind in MESSAGES if kind not in DIFFERENT.get(name, ())]
        found[name] = {kind: formatter(messages=MESSAGES[kind]).prompt for kind in kinds}
    return found


def main() -> None:
    import llama_cpp  # type: ignore[import-not-found]

    made_by = f"tools/make_named_formats_fixture.py, llama-cpp-python {llama_cpp.__version__}"
    found = prompts(llama_cpp.llama_chat_format)
    data = {"made_by": made_by, "messages": MESSAGES, "prompts": found}
    FIXTURE.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
