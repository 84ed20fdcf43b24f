"""The state of a `Llama` object as a picklable value: tokens, cache, logits and random numbers."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.session import Logits, Session
from pyllamacpu.errors import ModelError, OptionError
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.model.config import ModelConfig


@dataclass(eq=False)
class LlamaState:
    """What `Llama.save_state` returns.

    input_ids: its first `n_tokens` are the evaluated tokens.
    scores: (n, n_vocab) logits behind the last `n` tokens: all of them with logits_all, else one or none.
    llama_state: keys and values of the tokens, `llama_state_size` bytes.
    seed: of the object.
    model: what it fits: only the same model with the same cache types and precision. () is not compared.
    seeds: where the series of seeds for coming calls is; None leaves it where it is.
    sampler: options and state of the sampler behind `Llama.sample`.
    weights: `weights_digest` of the model. "" is not compared.
    """

    input_ids: npt.NDArray[np.intc]
    scores: npt.NDArray[np.float32]
    n_tokens: int
    llama_state: bytes
    llama_state_size: int
    seed: int
    model: tuple[Any, ...] = ()
    seeds: tuple[Any, ...] | None = None
    sampler: Any = None
    weights: str = ""

    @property
    def tokens(self) -> tuple[int, ...]:
        """The evaluated tokens."""
        return tuple(int(token) for token in self.input_ids[: self.n_tokens])

    @property
    def last(self) -> npt.NDArray[np.float32] | None:
        """(n_vocab,) logits behind the last token, if they are here."""
        return None if len(self.scores) == 0 else np.asarray(self.scores[-1], np.float32)

    @property
    def all_scores(self) -> npt.NDArray[np.float32] | None:
        """(n_tokens, n_vocab) logits behind every token, if they are here."""
        return self.scores if len(self.scores) == self.n_tokens else None

    def without_random_numbers(self) -> LlamaState:
        """The same text, for going on with other random numbers."""
        return replace(self, seeds=None, sampler=None)


def check_state(state: Any, n_vocab: int, n_ids: int) -> LlamaState:
    """`state`, whose fields may have come from a pickle of anything. n_ids: with those behind the vocabulary,
    which stand for images. Raises OptionError for wrong ones.
    """
    if not isinstance(state, LlamaState):
        raise OptionError(f"a state is what save_state returned, not {type(state).__name__}")
    checks: dict[str, Callable[[], bool]] = {
        "model": lambda: isinstance(state.model, tuple) and all(map(_is_plain, state.model)),
        "n_tokens": lambda: type(state.n_tokens) is int and 0 <= state.n_tokens <= len(state.input_ids),
        "input_ids": lambda: _are_tokens(state.input_ids, state.n_tokens, max(n_vocab, n_ids)),
        "llama_state": lambda: isinstance(state.llama_state, bytes),
        "scores": lambda: _is_logits(state.scores, (len(state.scores), n_vocab)),
        "seed": lambda: type(state.seed) is int and -1 <= state.seed < 1 << 64,
        "weights": lambda: isinstance(state.weights, str),
        "seeds": lambda: state.seeds is None or _are_seeds(state.seeds),
    }
    for name, sound in checks.items():
        if not _holds(sound):
            raise OptionError(f"the saved state is damaged, or not of this program: its {name}")
    return state


def check_same_model(state: LlamaState, fingerprint: tuple[Any, ...], weights: str) -> None:
    """Raises ModelError for a state of another model than the one that these tell. What the state does not
    say is not compared.
    """
    if state.model and state.model != fingerprint:
        raise ModelError(
            f"the state is of another model, cache type or precision: {state.model}, here {fingerprint}"
        )
    if state.weights and state.weights != weights:
        raise ModelError(
            "the state is of another model: its weights, or constants such as those of rope, are not the same"
        )


def weights_digest(file: GGUFFile, config: ModelConfig) -> str:
    """Tells models apart whose keys and values differ: by constants such as rope's, which options override,
    by types, and by a sample of every tensor. Raises GGUFError when the file was cut short.
    """
    found = hashlib.sha256(repr(list(_facts(config))).encode())
    for name, info in sorted(file.tensors.items()):
        found.update(repr((name, info.shape, info.type.name)).encode())
        found.update(file.sample(name))
    return found.hexdigest()[:32]


def _facts(config: Any) -> Iterator[tuple[str, Any]]:
    """What a config says beside the defaults: a constant that a later version adds changes nothing."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name == "n_ctx_train" or (field.default is not MISSING and value == field.default):
            continue
        yield field.name, list(_facts(value)) if is_dataclass(value) else value


def saved_scores(session: Session) -> Logits:
    """The logits behind all tokens if they are kept, else behind the last one: (n, n_vocab)."""
    if session.scores is not None and session.n_scored == len(session):
        rows: Logits = session.scores[: len(session)].copy()
        return rows
    last = [] if session.last is None else [session.last]
    return np.array(last, np.float32).reshape(len(last), session.n_vocab)


def _holds(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError):  # of a wrong type altogether
        return False


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float))


def _are_tokens(ids: Any, n: int, n_vocab: int) -> bool:
    whole = isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind in "iu"
    return whole and bool(((ids[:n] >= 0) & (ids[:n] < n_vocab)).all())


def _is_logits(value: Any, shape: Sequence[int]) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float32 and value.shape == tuple(shape)


def _are_seeds(value: Any) -> bool:
    try:
        random.Random().setstate(value)
    except Exception:  # whatever Python's own check runs into
        return False
    return True
