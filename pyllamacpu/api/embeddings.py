"""What the `Llama` class does with text and gives as vectors: embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyllamacpu.api import responses
from pyllamacpu.api.compat import warn_once
from pyllamacpu.api.completions import Completions
from pyllamacpu.api.prompts import as_texts
from pyllamacpu.api.responses import Response
from pyllamacpu.engine.generate import HiddenRequest
from pyllamacpu.engine.pooling import own_pooling, pool
from pyllamacpu.engine.token_ids import check_length
from pyllamacpu.errors import OptionError


class Embeddings(Completions):
    """Text in, vectors out."""

    pooling: int = -1

    def pooling_type(self) -> int:
        """How `embed` joins the vectors of a text."""
        return own_pooling(self._parts.metadata) if self.pooling == -1 else self.pooling

    def embed(
        self,
        input: str | Sequence[str],
        normalize: bool = False,
        truncate: bool = True,
        return_count: bool = False,
    ) -> Any:
        """The embedding of a text as a list of n_embd floats, or a list of them for a list of texts.

        The mean of the final hidden states, unless the file or `pooling_type` says otherwise (0: a vector for
        each token). With `normalize` its length is 1. A text longer than the context loses its end, with a
        UserWarning, or without `truncate` raises ContextError. With `return_count`, a pair of the result and
        the number of tokens.
        """
        texts = as_texts("input", input)
        vectors, n_tokens = [], 0
        for i, ids in enumerate(self.tokenize_all(texts)):
            which = "input" if isinstance(input, str) else f"input[{i}]"
            if not ids:
                raise OptionError(
                    f"{which}: nothing to embed: the text is empty and this model puts no BOS before it"
                )
            if truncate and len(ids) > self.n_ctx():
                warn_once("truncate", f"embed() leaves out a text's tokens behind the first {self.n_ctx()}")
                ids = ids[: self.n_ctx()]
            check_length(len(ids), self.n_ctx(), which)
            n_tokens += len(ids)
            vectors.append(pool(self._hidden(ids), self.pooling_type(), normalize))
        result = vectors[0] if isinstance(input, str) else vectors
        return (result, n_tokens) if return_count else result

    def _hidden(self, ids: Sequence[int]) -> Any:
        """States (n_tokens, dim) after the final norm."""
        assert self.engine is not None
        stream = self._driver.submit(HiddenRequest(ids))
        try:
            return stream.next().hidden
        finally:
            stream.close()

    def create_embedding(self, input: str | Sequence[str], model: str | None = None) -> Response:
        """Embeddings in the OpenAI API's shape."""
        texts = as_texts("input", input)
        vectors, n_tokens = self.embed(texts, return_count=True)
        return responses.embedding_response(model or self.model_path, vectors, n_tokens)
