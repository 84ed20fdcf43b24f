"""Draft models: what proposes the next tokens, for code that brings its own (`Llama(draft_model=...)`).

The tokens of an answer are the same with and without a draft; only the time differs.
"""

from __future__ import annotations

import abc
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.drafts import CalledDrafts, DraftSource, PromptLookup
from pyllamacpu.errors import OptionError

Ids = npt.NDArray[np.intc]


class LlamaDraftModel(abc.ABC):
    """Called with the tokens so far, it returns some that may follow."""

    @abc.abstractmethod
    def __call__(self, input_ids: Ids, /, **kwargs: Any) -> Ids: ...


class LlamaPromptLookupDecoding(LlamaDraftModel):
    """Proposes what followed the newest tokens where they stood in the text before."""

    def __init__(self, max_ngram_size: int = 2, num_pred_tokens: int = 10) -> None:
        self.max_ngram_size = max_ngram_size
        self.num_pred_tokens = num_pred_tokens

    def __call__(self, input_ids: Ids, /, **kwargs: Any) -> Ids:
        return self.find_candidate_pred_tokens(input_ids, self.max_ngram_size, self.num_pred_tokens)

    @staticmethod
    def find_candidate_pred_tokens(input_ids: Ids, max_ngram_size: int, num_pred_tokens: int) -> Ids:
        """What followed the first place of the longest ending, of at most `max_ngram_size` tokens, that stood
        before; up to `num_pred_tokens`, or none.
        """
        n = len(input_ids)
        for size in range(min(max_ngram_size, n - 1), 0, -1):
            ending = input_ids[n - size :]
            before = np.lib.stride_tricks.sliding_window_view(input_ids[: n - 1], size)
            places = np.flatnonzero((before == ending).all(axis=1))
            if num_pred_tokens > 0 and len(places):
                start = int(places[0]) + size
                return input_ids[start : start + num_pred_tokens]
        return np.array([], np.intc)


def source_of_drafts(given: Any) -> DraftSource:
    """What `Llama` takes for `draft_model` and is not a file, as the scheduler takes it. Raises OptionError.

    llama-cpp-python's own lookup, if nothing of it is changed, is the scheduler's, which finds more.
    """
    if given == "lookup":
        return PromptLookup()
    if type(given) is LlamaPromptLookupDecoding:
        if not isinstance(given.num_pred_tokens, int) or given.num_pred_tokens < 1:
            raise OptionError(f"num_pred_tokens={given.num_pred_tokens!r:.80}: give at least 1 token")
        return PromptLookup(given.num_pred_tokens)
    if isinstance(given, type):
        raise OptionError(f"draft_model={given!r:.80}: this is a class; give an object of it")
    if hasattr(given, "create_completion"):  # a Llama, which is callable too
        raise OptionError("draft_model: this is an open model; give its file's path")
    if callable(given):
        return CalledDrafts(given)
    raise OptionError(f"draft_model={given!r:.80}: give 'lookup', a model file, or a LlamaDraftModel")
