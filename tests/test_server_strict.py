"""Fields that a strict server knows although they have no effect in this request. Covers server/responses.py,
server/ollama.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from serving import Running, tiny_path, tiny_server

QUESTION = [{"role": "user", "content": "hello"}]

path, running = tiny_path(), tiny_server(strict=True)


@pytest.mark.parametrize(
    "url, body",
    [
        ("/v1/responses", {"input": "hello", "max_output_tokens": 16, "top_logprobs": 2,
                           "include": ["message.output_text.logprobs"]}),
        ("/api/chat", {"model": "tiny", "messages": [], "options": {"seed": 1}, "format": "json"}),
        ("/api/generate", {"model": "tiny", "options": {"seed": 1}, "format": "json", "keep_alive": 60}),
        ("/v1/chat/completions", {"messages": QUESTION, "max_tokens": 1, "verbosity": "medium"}),
    ],
)  # fmt: skip
def test_known_fields_are_no_fault(running: Running, url: str, body: dict[str, Any]) -> None:
    response = running.post(url, **body)
    assert response.status_code == 200, response.text
    refused = running.post(url, **body, strange=1)
    assert refused.status_code == 400 and "strange" in refused.text
