"""A tokenizer.json of a Unigram model, run as it is: added tokens, normalizer, pre-tokenizer, pieces, and the
tokens around a text.

In a GGUF file it is `tokenizer.ggml.model` "unigram" (our own; llama.cpp's "t5" cannot say how text is
prepared): pieces and scores as usual, `tokenizer.ggml.precompiled_charsmap`, and in
`tokenizer.unigram.pipeline` the rest of the JSON, without the vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import regex

from pyllamacpu.errors import TokenizerError
from pyllamacpu.gguf.metadata import text_of
from pyllamacpu.gguf.strings import StringArray
from pyllamacpu.text.normalizers import make_normalizer
from pyllamacpu.text.pretokenizers import make_pretokenizer
from pyllamacpu.text.tokenizer import to_bytes
from pyllamacpu.text.unicode_categories import WHITE_SPACE, seen_by
from pyllamacpu.text.unigram import Unigram

MODEL = "unigram"
PIPELINE = "tokenizer.unigram.pipeline"
CHARSMAP = "tokenizer.ggml.precompiled_charsmap"
_WORD = regex.compile(r"\w")
_MAX_DEPTH = 8


def _is_word(character: str) -> bool:
    return _WORD.match(seen_by(_WORD, character)) is not None


class _Added(NamedTuple):
    """A token that is cut out of the text before anything else."""

    id: int
    single_word: bool
    takes_left: bool  # white space beside it
    takes_right: bool


class _Finder:
    """Finds added tokens in a text: the leftmost, then the longest."""

    def __init__(self, tokens: Mapping[str, _Added]) -> None:
        self._tokens = tokens
        names = sorted(tokens, key=len, reverse=True)
        self._pattern = regex.compile("|".join(map(regex.escape, names))) if names else None

    def __call__(self, text: str) -> Iterator[str | int]:
        """The text's parts: plain ones, and ids."""
        start = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            token, first, last = self._tokens[match.group()], match.start(), match.end()
            if token.single_word and (_is_word(text[first - 1 : first]) or _is_word(text[last : last + 1])):
                continue
            if token.takes_left:
                first = max(start, len(text[:first].rstrip(WHITE_SPACE)))
            if token.takes_right:
                last = len(text) - len(text[last:].lstrip(WHITE_SPACE))
            if start < first:
                yield text[start:first]
            yield token.id
            start = last
        if start < len(text):
            yield text[start:]


class UnigramPipeline:
    """`encode` gives the ids of a text alone, `around` are those before and behind it."""

    def __init__(
        self,
        pipeline: Mapping[str, Any],
        pieces: Sequence[str],
        scores: npt.NDArray[np.float64],
        charsmap: bytes | None,
        path: str = "model",
    ) -> None:
        """pieces: of the vocabulary, and maybe added tokens, which have no score. Raises TokenizerError."""
        self.path = path
        try:
            _check_characters(pipeline)
            self._normalize = make_normalizer(pipeline.get("normalizer"), charsmap)
            self._words = make_pretokenizer(pipeline.get("pre_tokenizer"))
            plain, normalized = _added_tokens(pipeline.get("added_tokens"))
            self._plain = _Finder(plain)
            found = {self._normalize(text): token for text, token in normalized.items()}
            if "" in found:
                raise TokenizerError("the normalizer leaves nothing of an added token")
            self._normalized = _Finder(found)
            self.around = _around(pipeline.get("post_processor"))
            unknown = pipeline.get("unk_id")
            if unknown is not None and not (_is_id(unknown) and unknown < len(scores)):
                raise TokenizerError(f"unk_id is {unknown!r:.40}")
            self._model = Unigram(pieces, scores, unknown, bool(pipeline.get("byte_fallback")))
        except TokenizerError as error:
            raise TokenizerError(f"{path}: the tokenizer: {error}; convert the model again") from None

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, Any], path: str) -> UnigramPipeline:
        """That of a GGUF file. Raises TokenizerError when it has none, or a damaged one."""
        kind = text_of(metadata, "tokenizer.ggml.model")
        if kind != MODEL:
            raise TokenizerError(f"{path}: has a tokenizer of the kind {kind!r:.40}, not {MODEL}")
        try:
            pipeline = json.loads(metadata.get(PIPELINE) or "null")
        except (ValueError, TypeError, RecursionError):
            pipeline = None
        pieces = metadata.get("tokenizer.ggml.tokens")
        n_pieces = pipeline.get("n_pieces") if isinstance(pipeline, dict) else None
        scores = metadata.get("tokenizer.ggml.scores")
        if (
            not isinstance(n_pieces, int)
            or not isinstance(pieces, StringArray)
            or not 0 < n_pieces <= len(pieces)
            or not isinstance(scores, np.ndarray)
            or len(scores) < n_pieces
            or not np.isfinite(scores).all()
        ):
            raise TokenizerError(f"{path}: {PIPELINE} or the scores are damaged; convert the model again")
        charsmap = metadata.get(CHARSMAP)
        data = charsmap.astype(np.uint8).tobytes() if isinstance(charsmap, np.ndarray) else None
        return cls(pipeline, pieces, scores[:n_pieces].astype(np.float64), data, path)

    def encode(self, text: str | bytes) -> list[int]:
        """Ids of `text`, without those around it. What is not UTF-8 counts as U+FFFD. Raises TokenizerError
        for a character that the vocabulary lacks, where it has no token for such.
        """
        ids: list[int | None] = []
        for i, part in enumerate(self._parts(to_bytes(text).decode("utf-8", "replace"))):
            if isinstance(part, int):
                ids.append(part)
                continue
            for word in self._words(part, i == 0):
                ids += self._model.encode(word)
        if None in ids:
            raise TokenizerError(f"{self.path}: the text has characters that the vocabulary lacks")
        return [token for token in ids if token is not None]

    def _parts(self, text: str) -> Iterator[str | int]:
        """Added tokens, and normalized text between them."""
        for part in self._plain(text):
            if isinstance(part, int):
                yield part
            else:
                yield from self._normalized(self._normalize(part))


def _check_characters(pipeline: Mapping[str, Any]) -> None:
    """Raises TokenizerError for text that UTF-8 cannot say: JSON can hold halves of surrogate pairs."""
    try:
        json.dumps(pipeline, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise TokenizerError("it holds half of a surrogate pair, which is no character") from None


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _added_tokens(listed: Any) -> tuple[dict[str, _Added], dict[str, _Added]]:
    """Those that are looked for in the text as it is, and those in the normalized one."""
    plain: dict[str, _Added] = {}
    normalized: dict[str, _Added] = {}
    if not isinstance(listed, (list, type(None))):
        raise TokenizerError("added_tokens is not a list")
    for item in listed or ():
        content = item.get("content") if isinstance(item, Mapping) else None
        if not isinstance(content, str) or not content or not _is_id(item.get("id")):
            raise TokenizerError("added_tokens holds what is not a token")
        flags = (bool(item.get(name)) for name in ("single_word", "lstrip", "rstrip"))
        place = normalized if item.get("normalized") else plain
        place[content] = _Added(item["id"], *flags)
    return plain, normalized


def _around(part: Any, depth: int = 0) -> tuple[list[int], list[int]]:
    """Ids before and behind a text, as the post-processor puts them there."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if part is None or kind == "ByteLevel":
        return [], []
    if kind == "Sequence" and depth < _MAX_DEPTH:
        before: list[int] = []
        behind: list[int] = []
        listed = part.get("processors")
        if not isinstance(listed, list):
            raise TokenizerError("a post-processor Sequence without a list")
        for item in listed:
            first, last = _around(item, depth + 1)
            before, behind = first + before, behind + last
        return before, behind
    if kind in ("BertProcessing", "RobertaProcessing"):
        pairs = (part.get(name) for name in ("cls", "sep"))
        cls, sep = ([pair[1]] if isinstance(pair, list) and len(pair) == 2 else [] for pair in pairs)
        return _checked(cls), _checked(sep)
    if kind != "TemplateProcessing":
        raise TokenizerError(f"the post-processor {kind!r:.40} is not supported")
    steps, tokens = part.get("single"), part.get("special_tokens")
    steps = steps if isinstance(steps, list) else []
    texts = [i for i, step in enumerate(steps) if isinstance(step, Mapping) and "Sequence" in step]
    if len(texts) != 1 or not isinstance(tokens, Mapping):
        raise TokenizerError("a TemplateProcessing without a place for the text")
    return _special(steps[: texts[0]], tokens), _special(steps[texts[0] + 1 :], tokens)


def _special(steps: Iterable[Any], tokens: Mapping[str, Any]) -> list[int]:
    ids: list[int] = []
    for step in steps:
        token = step.get("SpecialToken") if isinstance(step, Mapping) else None
        name = token.get("id") if isinstance(token, Mapping) else None
        found = tokens.get(name) if isinstance(name, str) else None
        ids += _checked(found.get("ids") if isinstance(found, Mapping) else None)
    return ids


def _checked(ids: Any) -> list[int]:
    if not isinstance(ids, list) or not all(map(_is_id, ids)):
        raise TokenizerError("a special token of the post-processor has no id")
    return ids
