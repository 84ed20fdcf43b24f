"""Scanners of one's own that ask a model: in this process, at a server; what fails is the scanner's to say.

Covers safety/scanners/checks.py.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from serving import Running, tiny_path, tiny_server

from pyllamacpu import Llama
from pyllamacpu.errors import OptionError
from pyllamacpu.safety import Firewall, LLMClient, Message, Role, ScanDecision, ScanResult, Trace, UserMessage
from pyllamacpu.safety.scanners import CustomCheckScanner
from pyllamacpu.safety.scanners.base import registered
from pyllamacpu.safety.scanners.models import ALIGNMENT_VARIABLE

path, running = tiny_path(n_ctx=1024), tiny_server()


class Answer(BaseModel):
    bad: bool


class Check(CustomCheckScanner[Answer]):
    """Blocks what the model calls bad, and what it does not answer."""

    def __init__(self, model: Any = None, **options: Any) -> None:
        super().__init__("Check", "Is it bad?", Answer, model, **options)
        self.answers: list[Answer] = []

    def _get_default_error_response(self) -> Answer:
        return Answer(bad=True)

    async def _convert_llm_response_to_score(self, response: Answer) -> float:
        return float(response.bad)

    async def scan(self, message: Message, past_trace: Trace | None = None) -> ScanResult:
        answer = await self._evaluate_with_llm(str(message.content))
        self.answers.append(answer)
        score = await self._convert_llm_response_to_score(answer)
        return ScanResult(ScanDecision.BLOCK if score else ScanDecision.ALLOW, "", score)


class FakeModel:
    def __init__(self, content: str) -> None:
        self.content = content
        self.asked: list[Any] = []

    def create_chat_completion(self, messages: list[dict[str, str]], **options: Any) -> Any:
        self.asked.append((messages, options))
        return {"choices": [{"message": {"content": self.content}}]}


@pytest.mark.parametrize(
    ("content", "bad"), [('{"bad": false}', False), ('{"bad": true}', True), ('{"bad"', True), ("{}", True)]
)
def test_an_answer_decides_and_none_is_the_default(
    content: str, bad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FakeModel(content)
    monkeypatch.setitem(registered, "own check", lambda: Check(model))
    with Firewall({Role.USER: ["own check"]}) as firewall:
        decision = firewall.scan(UserMessage("hello")).decision
    assert decision is (ScanDecision.BLOCK if bad else ScanDecision.ALLOW)
    ((messages, options),) = model.asked
    assert [message["content"] for message in messages] == ["Is it bad?", "hello"]
    assert options["response_format"]["schema"] == Answer.model_json_schema()


def test_a_model_here_and_at_a_server_answer_alike(path: Path, running: Running) -> None:
    more = [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]
    clients: list[LLMClient[Answer]] = [LLMClient(str(path)), LLMClient("tiny", f"{running.url}/v1")]
    with Llama(str(path), n_ctx=1024, verbose=False) as llm:
        clients.append(LLMClient(llm))
        found = [asyncio.run(client.call("hello", "Is it bad?", Answer, 0.0, more)) for client in clients]
        clients[2].close()
        assert llm.tokenize(b"x")  # who opened it closes it
    assert found[0] == found[1] == found[2]
    clients[0].close()


def test_servers_that_do_not_answer_are_the_default(running: Running) -> None:
    for address in (f"{running.url}/nothing", "http://127.0.0.1:1/v1", "file:///etc"):
        check = Check("tiny", api_base_url=address)
        assert asyncio.run(check.scan(UserMessage("x"))).decision is ScanDecision.BLOCK, address


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ALIGNMENT_VARIABLE, raising=False)
    with pytest.raises(OptionError, match="NO_SUCH_KEY is not set"):
        LLMClient("m", "http://127.0.0.1:1/v1", api_key_env_var="NO_SUCH_KEY")
    with pytest.raises(OptionError, match=ALIGNMENT_VARIABLE):
        Check().load()
