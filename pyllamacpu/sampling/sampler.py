"""The sampler: chooses the next token from a row of logits, and keeps the state that this needs.

All that touches the whole vocabulary is one C call per token (csrc/sampling/).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import NativeError, NoTokenError, OptionError
from pyllamacpu.native import ffi, lib
from pyllamacpu.sampling.dry import DryBreakers, find_breakers
from pyllamacpu.sampling.options import (
    DEFAULT_SAMPLERS,
    MAX_SEED,
    RANDOM_SEED,
    SamplingOptions,
    samplers_from_letters,
)

__all__ = [
    "DEFAULT_SAMPLERS",
    "Candidates",
    "LogitsProcessor",
    "Sampler",
    "SamplingOptions",
    "TokenLogprobs",
    "samplers_from_letters",
    "sampling_error",
    "top_logprobs",
]

FloatRow = npt.NDArray[np.float32]
LogitsProcessor = Callable[[npt.NDArray[np.int32], FloatRow], npt.ArrayLike]
"""(token ids so far, logits (n_vocab,)) -> logits (n_vocab,), before the chain. It may change its input."""

MIN_HISTORY = 64  # tokens that `Sampler.history` remembers even when no step looks back
_STATE_VERSION = 1
_STEPS = {
    "penalties": lib.PL_STEP_PENALTIES,
    "dry": lib.PL_STEP_DRY,
    "top_n_sigma": lib.PL_STEP_TOP_N_SIGMA,
    "top_k": lib.PL_STEP_TOP_K,
    "typ_p": lib.PL_STEP_TYPICAL_P,
    "top_p": lib.PL_STEP_TOP_P,
    "min_p": lib.PL_STEP_MIN_P,
    "xtc": lib.PL_STEP_XTC,
    "temperature": lib.PL_STEP_TEMPERATURE,
    "adaptive_p": lib.PL_STEP_ADAPTIVE_P,
}
_SAME_NAME = (
    "top_k",
    "min_keep",
    "mirostat",
    "dry_allowed_length",
    "top_p",
    "min_p",
    "typical_p",
    "top_n_sigma",
    "xtc_probability",
    "xtc_threshold",
    "temperature",
    "dynatemp_range",
    "dynatemp_exponent",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "dry_multiplier",
    "dry_base",
    "mirostat_tau",
    "mirostat_eta",
    "adaptive_target",
    "adaptive_decay",
)


@dataclass(frozen=True)
class Candidates:
    """What a token would be drawn from, best first: ids (n,) int32, logits (n,) and probs (n,) float32."""

    ids: npt.NDArray[np.int32]
    logits: FloatRow
    probs: FloatRow


@dataclass(frozen=True)
class TokenLogprobs:
    """A token's log-probability and the best tokens with theirs, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


_MESSAGES = {
    lib.PL_SAMPLE_ENAN: "a logit is NaN or +inf; the model's output cannot be used",
    lib.PL_SAMPLE_EEMPTY: "every token is excluded (all logits are -inf); loosen the bias, the processors or "
    "the mask",
    lib.PL_ENOMEM: "out of memory",
}


def sampling_error(code: int, what: str = "sampling") -> NativeError:
    """The error that a negative `code` of the sampler's C functions stands for."""
    kind = NoTokenError if code == lib.PL_SAMPLE_EEMPTY else NativeError
    return kind(f"{what}: {_MESSAGES.get(code, f'refused (code {code})')}")


def _row(logits: npt.ArrayLike, n_vocab: int) -> FloatRow:
    """`logits` as a contiguous float32 row of n_vocab."""
    row = np.ascontiguousarray(logits, dtype=np.float32)
    if row.shape != (n_vocab,):
        raise OptionError(f"logits: shape {row.shape}; expected ({n_vocab},)")
    return row


def top_logprobs(logits: npt.ArrayLike, token: int, n: int, n_tokens: int | None = None) -> TokenLogprobs:
    """Log-softmax of unprocessed `logits` (n_vocab,): `token`'s value and the `n` best (equal ones by id).

    Only the first `n_tokens` logits count, if given. -inf logits are never among the best. OptionError for a
    token outside the vocabulary or n < 0.
    """
    row = np.ascontiguousarray(logits, dtype=np.float32).reshape(-1)[:n_tokens]
    if not 0 <= token < row.size or n < 0:
        raise OptionError(f"logprobs: token {token}, n {n}; allowed: token 0 to {row.size - 1}, n >= 0")
    n = min(n, row.size)
    ids, values, own = ffi.new("int32_t[]", max(n, 1)), ffi.new("float[]", max(n, 1)), ffi.new("float *")
    found = lib.pl_top_logprobs(ffi.from_buffer("float[]", row), row.size, token, n, ids, values, own)
    if found < 0:
        raise sampling_error(found, "logprobs")
    return TokenLogprobs(token, own[0], tuple((ids[i], values[i]) for i in range(found)))


def _window(name: str, value: int, n_ctx: int) -> int:
    """A look-back in tokens; -1 is the context."""
    if value >= 0:
        return value
    if n_ctx <= 0:
        raise OptionError(f"{name}: -1 means the whole context, but this sampler was not told n_ctx")
    return n_ctx


class Sampler:
    """The chain of one sequence. Not thread-safe: each sequence has its own.

    n_vocab: logits per row; n_tokens: ids that exist, if they are fewer: logits after them are padding, which
    only processors see. token_bytes: the bytes of every token, a sequence or a function of the id;
    tokenize: bytes to ids, without BOS or special tokens; both only for DRY's sequence breakers. n_ctx: what
    -1 means in a look-back. processors: functions on the logits before the chain. breakers: another
    sampler's, to share them.
    """

    def __init__(
        self,
        options: SamplingOptions | None = None,
        n_vocab: int = 0,
        token_bytes: Sequence[bytes] | Callable[[int], bytes] | None = None,
        tokenize: Callable[[bytes], Sequence[int]] | None = None,
        n_ctx: int = 0,
        processors: Iterable[LogitsProcessor] | None = None,
        breakers: DryBreakers | None = None,
        n_tokens: int | None = None,
    ) -> None:
        self.options = options or SamplingOptions()
        if n_vocab < 1:
            raise OptionError(f"n_vocab: {n_vocab}; allowed: at least 1")
        self.n_vocab = n_vocab
        self.n_tokens = n_vocab if n_tokens is None else n_tokens
        if not 1 <= self.n_tokens <= n_vocab:
            raise OptionError(f"n_tokens: {n_tokens}; allowed: 1 to {n_vocab}")
        self.n_ctx = n_ctx
        self.processors = tuple(processors or ())
        self.breakers = breakers or self._find_breakers(token_bytes, tokenize)
        self.seed = self._new_seed()
        self._state = self._create()
        self._ids = np.empty(0, np.int32)  # all accepted tokens, kept only for processors
        self._n_ids = 0

    def _find_breakers(
        self,
        token_bytes: Sequence[bytes] | Callable[[int], bytes] | None,
        tokenize: Callable[[bytes], Sequence[int]] | None,
    ) -> DryBreakers:
        strings = self.options.dry_sequence_breakers if self.options.dry_on else ()
        if not strings:
            return ()
        if token_bytes is None:
            raise OptionError(
                "dry_sequence_breakers: there is no tokenizer to find them with; give none of them"
            )
        return find_breakers(strings, self.n_tokens, token_bytes, tokenize)

    def _new_seed(self) -> int:
        if self.options.seed not in (RANDOM_SEED, MAX_SEED):
            return self.options.seed
        return int.from_bytes(os.urandom(8), "little") % MAX_SEED

    def _create(self) -> Any:
        o = self.options
        params = ffi.new("pl_sampler_params *")
        params.n_vocab, params.n_tokens, params.n_steps = self.n_vocab, self.n_tokens, len(o.samplers)
        params.steps[0 : len(o.samplers)] = [_STEPS[name] for name in o.samplers]
        for name in _SAME_NAME:
            setattr(params, name, getattr(o, name))
        params.penalty_last_n = _window("repeat_last_n", o.repeat_last_n, self.n_ctx) if o.penalties_on else 0
        params.dry_last_n = _window("dry_penalty_last_n", o.dry_penalty_last_n, self.n_ctx) if o.dry_on else 0
        params.history_len = MIN_HISTORY
        keep = self._give_arrays(params)
        state = lib.pl_sampler_new(params, self.seed)
        del keep  # the C side has copied them
        if state == ffi.NULL:
            raise NativeError(f"sampler: out of memory for {self.n_vocab} tokens")
        return ffi.gc(state, lib.pl_sampler_free)

    def _give_arrays(self, params: Any) -> list[Any]:
        """Points `params` to the bias and the breakers -> what must live until C has read it."""
        bias = self.options.logit_bias
        if bias and bias[-1][0] >= self.n_tokens:
            raise OptionError(f"logit_bias: token {bias[-1][0]}; allowed: 0 to {self.n_tokens - 1}")
        arrays = [
            ffi.new("int32_t[]", [token for token, _ in bias]),
            ffi.new("float[]", [value for _, value in bias]),
            ffi.new("int32_t[]", [len(b) for b in self.breakers]),
            ffi.new("int32_t[]", [token for b in self.breakers for token in b]),
        ]
        params.n_bias, params.n_breakers = len(bias), len(self.breakers)
        params.bias_ids, params.bias, params.breaker_lens, params.breaker_tokens = arrays
        return arrays

    def sample(self, logits: npt.ArrayLike) -> int:
        """The next token for `logits` (n_vocab,) float32, which stay as they are. It is yet to be accepted.

        Raises NativeError when a logit is NaN or +inf, NoTokenError when every token is excluded, OptionError
        for another shape.
        """
        row = self.processed(logits)
        token = lib.pl_sample(self._state, ffi.from_buffer("float[]", row), self.n_vocab)
        if token < 0:
            raise sampling_error(token)
        return int(token)

    def processed(self, logits: npt.ArrayLike) -> FloatRow:
        """What the processors make of `logits` (n_vocab,): the row that the chain sees."""
        row = _row(logits, self.n_vocab)
        if self.processors:
            row = row.copy()
        for processor in self.processors:
            row = _row(processor(self._ids[: self._n_ids], row), self.n_vocab)
        return row

    def candidates(self, logits: npt.ArrayLike) -> Candidates:
        """What `sample` would draw from. Changes no state."""
        row = self.processed(logits)
        ids = np.empty(self.n_tokens, np.int32)
        values, probs = np.empty(self.n_tokens, np.float32), np.empty(self.n_tokens, np.float32)
        n = lib.pl_sampler_candidates(
            self._state,
            ffi.from_buffer("float[]", row),
            self.n_vocab,
            ffi.from_buffer("int32_t[]", ids),
            ffi.from_buffer("float[]", values),
            ffi.from_buffer("float[]", probs),
        )
        if n < 0:
            raise sampling_error(n)
        return Candidates(ids[:n].copy(), values[:n].copy(), probs[:n].copy())

    def accept(self, token: int) -> None:
        """`token` was appended to the text. OptionError if it is outside the vocabulary."""
        if not 0 <= token < self.n_tokens:
            self._refuse(token)
        lib.pl_sampler_accept(self._state, (token,), 1)
        if self.processors:
            self._remember(np.array([token], np.int32))

    def accept_prompt(self, tokens: Sequence[int] | npt.NDArray[np.integer], penalize: bool = True) -> None:
        """These tokens are history too: penalties and DRY see a prompt as they see the answer. Without
        `penalize` it is not counted by the penalties, if there is no DRY that needs it.
        """
        try:
            wide = np.asarray(tokens, dtype=np.int64)
        except OverflowError:
            self._refuse(max(tokens, key=abs))
        if wide.size and not 0 <= wide.min() <= wide.max() < self.n_tokens:
            self._refuse(wide[(wide < 0) | (wide >= self.n_tokens)][0])
        ids = np.ascontiguousarray(wide, dtype=np.int32)
        if penalize or self.options.dry_on:
            lib.pl_sampler_accept(self._state, ffi.from_buffer("int32_t[]", ids), ids.size)
        if self.processors:
            self._remember(ids)

    def _refuse(self, token: int) -> NoReturn:
        raise OptionError(f"token {token} is outside the vocabulary; allowed: 0 to {self.n_tokens - 1}")

    def _remember(self, ids: npt.NDArray[np.int32]) -> None:
        end = self._n_ids + ids.size
        if end > self._ids.size:
            grown = np.empty(max(2 * end, 256), np.int32)
            grown[: self._n_ids] = self._ids[: self._n_ids]
            self._ids = grown
        self._ids[self._n_ids : end] = ids
        self._n_ids = end

    def reset(self) -> None:
        """As new: no history, random numbers from the beginning (a new seed, if it was a random one)."""
        self.seed = self._new_seed()
        lib.pl_sampler_reset(self._state, self.seed)
        self._n_ids = 0

    @property
    def handle(self) -> Any:
        """The C sampler, for calls that sample many rows (rows.py)."""
        return self._state

    @property
    def history(self) -> list[int]:
        """The last accepted tokens, oldest first: as many as a step looks back on, at least 64."""
        cap = max(MIN_HISTORY, self.n_ctx, self.options.repeat_last_n, self.options.dry_penalty_last_n)
        out = ffi.new("int32_t[]", cap)
        return ffi.unpack(out, n) if (n := lib.pl_sampler_history(self._state, out, cap)) else []

    def get_state(self) -> dict[str, Any]:
        """All that later tokens depend on besides the options, as plain picklable values."""
        st = ffi.new("pl_sampler_state *")
        lib.pl_sampler_get_state(self._state, st)
        return {
            "version": _STATE_VERSION,
            "seed": self.seed,
            "rng": list(st.rng),
            "mu": st.mu,
            "ema": (st.ema_sum, st.ema_weight),
            "pending": (st.pending_token, st.pending_p),
            "history": self.history,
            "ids": self._ids[: self._n_ids].tolist(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where `get_state` was called, with the same options. OptionError if it is no such state."""
        try:
            self._restore(state)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise OptionError(f"sampler state: not one that get_state made ({error})") from None

    def _restore(self, state: dict[str, Any]) -> None:
        if state["version"] != _STATE_VERSION:
            raise OptionError(
                f"sampler state: version {state['version']}; this program reads {_STATE_VERSION}"
            )
        if len(state["rng"]) != 4 or not any(state["rng"]):
            raise OptionError("sampler state: the random generator's state is damaged")
        st = ffi.new("pl_sampler_state *")
        st.rng, st.mu = state["rng"], state["mu"]
        st.ema_sum, st.ema_weight = state["ema"]
        st.pending_token, st.pending_p = state["pending"]
        lib.pl_sampler_reset(self._state, state["seed"])
        self._n_ids = 0
        self.accept_prompt(state["history"])
        lib.pl_sampler_set_state(self._state, st)
        self.seed = state["seed"]
        self._n_ids = 0
        if self.processors:
            self._remember(np.asarray(state["ids"] or state["history"], np.int32))

    def clone(self) -> Sampler:
        """An independent sampler in the same state, for a fork of the sequence."""
        twin = self._alike(self.processors)
        twin.set_state(self.get_state())
        return twin

    def _alike(self, processors: Iterable[LogitsProcessor]) -> Sampler:
        return Sampler(
            self.options,
            self.n_vocab,
            n_ctx=self.n_ctx,
            processors=processors,
            breakers=self.breakers or None,
            n_tokens=self.n_tokens,
        )

    def guesser(self) -> Sampler:
        """A sampler to guess with what this one will choose: the same without processors, which may count
        their calls. `take_numbers_of` keeps it up.
        """
        twin = self._alike(())
        twin.accept_prompt(self.history)
        return twin

    def take_numbers_of(self, other: Sampler) -> None:
        """Goes on with the random numbers, and all that is counted but the history, where `other` is."""
        state = ffi.new("pl_sampler_state *")
        lib.pl_sampler_get_state(other._state, state)
        lib.pl_sampler_set_state(self._state, state)
