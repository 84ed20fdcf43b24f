"""Scanners of one's own that ask a chat model, whose answer has the form of a pydantic class. The names and
arguments are LlamaFirewall's; the model runs in this process, unless an address is given.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.request import Request, urlopen

from pyllamacpu.errors import OptionError, PyllamacpuError
from pyllamacpu.safety.scanners.base import Scanner
from pyllamacpu.safety.scanners.models import ALIGNMENT_VARIABLE

if TYPE_CHECKING:
    from pydantic import BaseModel

    Schema = TypeVar("Schema", bound=BaseModel)
else:
    Schema = TypeVar("Schema")

log = logging.getLogger("pyllamacpu.safety")

_MAX_TOKENS = 1024  # of an answer
_SECONDS = 120.0  # that a server may take


class LLMClient(Generic[Schema]):
    """Asks a chat model.

    Args:
        model_name: a file or name of a model, or an opened `Llama`; None is what the environment names in
            PYLLAMACPU_ALIGNMENT_MODEL. With an address, the name that the server there knows.
        api_base_url: of an OpenAI server, such as http://127.0.0.1:8080/v1; None: the model runs here, and
            no text leaves the process.
        api_key, api_key_env_var: for that server; the key, or the variable that holds it.

    Raises OptionError for a variable that is not set.
    """

    def __init__(
        self,
        model_name: Any = None,
        api_base_url: str | None = None,
        api_key: str | None = None,
        api_key_env_var: str | None = None,
    ) -> None:
        self.model_name, self._url = model_name, api_base_url
        if api_base_url is not None and api_key is None and api_key_env_var is not None:
            api_key = os.environ.get(api_key_env_var)
            if not api_key:
                raise OptionError(f"api_key_env_var: {api_key_env_var} is not set in the environment")
        self._key = api_key
        self._lock = threading.Lock()
        self._own: Any = None  # a model that was opened here

    async def call(
        self,
        prompt: str,
        system_prompt: str,
        output_schema: type[Schema],
        temperature: float = 0.0,
        additional_messages: Sequence[Mapping[str, str]] | None = None,
    ) -> Schema:
        """The model's answer, as an object of `output_schema`. Raises PyllamacpuError, ValueError for an
        answer that is cut or of another form, OSError when a server does not answer.
        """
        messages = [
            {"role": "system", "content": system_prompt},
            {"role": "user", "content": prompt},
            *map(dict, additional_messages or ()),
        ]
        ask = self._ask_here if self._url is None else self._ask_server
        text = await asyncio.to_thread(ask, messages, output_schema.model_json_schema(), temperature)
        return output_schema.model_validate_json(text)

    def load(self) -> None:
        """Opens a model that runs here. Raises any PyllamacpuError."""
        if self._url is None:
            self._opened()

    def _opened(self) -> Any:
        with self._lock:
            model = self._own or self.model_name or os.environ.get(ALIGNMENT_VARIABLE)
            if model is None:
                raise OptionError(f"model_name: give a chat model here or in {ALIGNMENT_VARIABLE}")
            if isinstance(model, (str, os.PathLike)):
                from pyllamacpu.api.llama import Llama

                self._own = model = Llama(model, n_ctx=0, verbose=False)
            return model

    def _ask_here(self, messages: list[dict[str, str]], schema: dict[str, Any], temperature: float) -> str:
        answer = self._opened().create_chat_completion(
            messages,
            response_format={"type": "json_object", "schema": schema},
            temperature=temperature,
            max_tokens=_MAX_TOKENS,
        )
        return str(answer["choices"][0]["message"]["content"])

    def _ask_server(self, messages: list[dict[str, str]], schema: dict[str, Any], temperature: float) -> str:
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        body = {
            "model": self.model_name,
            "messages": messages,
            "response_format": form,
            "temperature": temperature,
            "max_tokens": _MAX_TOKENS,
        }
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key or 'none'}"}
        url = f"{str(self._url).rstrip('/')}/chat/completions"
        if not url.startswith(("http://", "https://")):
            raise OptionError(f"api_base_url: {self._url} is not an http address")
        with urlopen(Request(url, json.dumps(body).encode(), headers), timeout=_SECONDS) as response:
            answer = json.loads(response.read())
        try:
            return str(answer["choices"][0]["message"]["content"])
        except (KeyError, IndexError, TypeError) as error:
            raise PyllamacpuError(f"{url}: the answer has no message") from error

    def close(self) -> None:
        """Frees a model that was opened here."""
        with self._lock:
            if self._own is not None:
                self._own.close()
            self._own = None


class CustomCheckScanner(Scanner, Generic[Schema]):
    """A scanner that asks a model with a prompt of its own; what it makes of the answer is a subclass's."""

    def __init__(
        self,
        scanner_name: str,
        system_prompt: str,
        output_schema: type[Schema],
        model_name: Any = None,
        api_base_url: str | None = None,
        api_key_env_var: str | None = None,
        temperature: float = 0.0,
        block_threshold: float = 0.0,
    ) -> None:
        super().__init__(scanner_name, block_threshold)
        self.system_prompt, self.output_schema, self.temperature = system_prompt, output_schema, temperature
        self.llm: LLMClient[Schema] = LLMClient(model_name, api_base_url, api_key_env_var=api_key_env_var)

    async def _evaluate_with_llm(self, text: str) -> Schema:
        """The model's answer; what `_get_default_error_response` gives when there is none."""
        try:
            return await self.llm.call(text, self.system_prompt, self.output_schema, self.temperature)
        except Exception as error:
            log.warning("%s failed: %s", self.name, error)
            return self._get_default_error_response()

    @abstractmethod
    def _get_default_error_response(self) -> Schema: ...

    @abstractmethod
    async def _convert_llm_response_to_score(self, response: Schema) -> float: ...

    def load(self) -> None:
        self.llm.load()

    def close(self) -> None:
        self.llm.close()
