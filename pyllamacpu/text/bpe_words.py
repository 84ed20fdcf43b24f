"""How byte-level BPE tokenizers cut text into words before merging (`tokenizer.ggml.pre`).

A pre-tokenizer is a list of patterns. Each one cuts every piece that the one before it left into its matches
and the gaps between them; the end of a piece counts as the end of the text. The patterns are those of the
models' own `tokenizer.json` files. `regex` reads \\p{..} and \\s as Oniguruma does and needs no stack for
long runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import regex

from pyllamacpu.native import lib
from pyllamacpu.text.unicode_categories import seen_by

CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# "Each digit alone, then GPT-2" in one pass: whitespace before a digit ends its piece.
DIGITS_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
LLAMA3 = rf"{CONTRACTION}|{WORD}|\p{{N}}{{1,3}}|{PUNCTUATION}|{SPACES}"
QWEN2 = rf"{CONTRACTION}|{WORD}|\p{{N}}|{PUNCTUATION}|{SPACES}"
MARKED_WORD = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
QWEN35 = rf"{CONTRACTION}|{MARKED_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}"
MINICPM5 = rf"{CONTRACTION}|{WORD}|\p{{N}}+|{PUNCTUATION}|{SPACES}"
SEED_CODER = rf"{CONTRACTION}|{WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{SPACES}"
BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
BAILING += r"|\s*[\r\n]|\s+(?!\S)|\s+"

UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TITLE_WORD, SHOUTED_WORD = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*",
)
SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
GPT4O = rf"{TITLE_WORD}{CONTRACTION}?|{SHOUTED_WORD}{CONTRACTION}?|\p{{N}}{{1,3}}|{SLASHED}|{SPACES}"
TEKKEN = rf"{TITLE_WORD}|{SHOUTED_WORD}|\p{{N}}|{SLASHED}|{SPACES}"

HAN_KANA = r"[一-龥぀-ゟ゠-ヿ]+"
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{SPACES}"
)
# The cased letters of the Unicode version that DeepSeek LLM's tokenizer was made with.
DEEPSEEK_CASED = (
    "A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    "\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
HAN_TO_HANGUL = "[一-龥ࠀ-一가-\ud7ff]+"
DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{DEEPSEEK_CASED}]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    HAN_TO_HANGUL,
    r"\p{N}+",
)
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN_TO_HANGUL, r"\p{N}")
CLAUSES = r" ?[^(\s|.,!?…。，、।۔،)]+"
# What llama.cpp does for files that name no pre-tokenizer.
DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")


@dataclass(frozen=True)
class WordRule:
    """A pattern as csrc/text/words.c matches it (`pl_word_rule` of api/text.h says what the fields mean)."""

    contractions: int
    word: int
    tail: int
    digits: int
    spaced_digits: bool = False
    lines: bool = True
    digits_end_spaces: bool = False


_ANY_CASE, _PREFIXED, _TAIL = lib.PL_CONTRACTIONS_ANY_CASE, lib.PL_WORD_PREFIXED, lib.PL_TAIL_LINES
_ASCII, _SPACED, _NO_TAIL = lib.PL_CONTRACTIONS_ASCII, lib.PL_WORD_SPACED, lib.PL_TAIL_NONE
RULES = {
    LLAMA3: WordRule(_ANY_CASE, _PREFIXED, _TAIL, 3),
    QWEN2: WordRule(_ANY_CASE, _PREFIXED, _TAIL, 1),
    GPT2: WordRule(_ASCII, _SPACED, _NO_TAIL, 0, spaced_digits=True, lines=False),
    DIGITS_GPT2: WordRule(_ASCII, _SPACED, _NO_TAIL, 1, lines=False, digits_end_spaces=True),
    GPT4O: WordRule(lib.PL_CONTRACTIONS_BEHIND, lib.PL_WORD_CASED, lib.PL_TAIL_SLASHES, 3),
    TEKKEN: WordRule(lib.PL_CONTRACTIONS_NONE, lib.PL_WORD_CASED, lib.PL_TAIL_SLASHES, 1),
}
"""Of the patterns that are matched in C; the others are left to `regex`."""


@dataclass(frozen=True)
class PreTokenizer:
    """`patterns` in order; `whole_words`: a word that is in the vocabulary is taken whole, whatever the
    merges say (`ignore_merges`); `add_bos`: whether BOS is added when the file does not say.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False

    @property
    def rule(self) -> WordRule | None:
        """How C matches it, if it can."""
        return RULES.get(self.patterns[0]) if len(self.patterns) == 1 else None

    def split(self, text: str) -> Iterator[str]:
        """The words of `text`; joined, they are `text` again."""
        pieces: Iterator[str] = iter((text,))
        for pattern in self.patterns:
            pieces = _split(_compiled(pattern), pieces)
        return pieces


def _split(pattern: regex.Pattern[str], pieces: Iterator[str]) -> Iterator[str]:
    for piece in pieces:
        end = 0
        for match in pattern.finditer(seen_by(pattern, piece)):
            start, stop = match.span()
            if start > end:
                yield piece[end:start]
            if stop > start:
                yield piece[start:stop]
            end = stop
        if end < len(piece):
            yield piece[end:]


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> regex.Pattern[str]:
    return regex.compile(pattern)


_TABLE: tuple[tuple[str, PreTokenizer], ...] = (
    ("default", PreTokenizer(DEFAULT)),
    (
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        PreTokenizer((LLAMA3,), whole_words=True, add_bos=True),
    ),
    ("dbrx smaug-bpe chatglm-bpe", PreTokenizer((LLAMA3,))),
    ("glm4 glm5", PreTokenizer((LLAMA3,), whole_words=True)),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", PreTokenizer((GPT4O,))),
    ("tekken", PreTokenizer((TEKKEN,), whole_words=True, add_bos=True)),
    (
        "gpt-2 gpt2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert mpt olmo "
        "jais trillion granite-docling exaone4",
        PreTokenizer((GPT2,)),
    ),
    ("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", PreTokenizer((DIGITS_GPT2,))),
    (
        "qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 hunyuan solar-open megrez grok-2",
        PreTokenizer((QWEN2,)),
    ),
    ("qwen35", PreTokenizer((QWEN35,))),
    ("minicpm5", PreTokenizer((r"\p{N}{1,3}", MINICPM5), whole_words=True)),
    ("seed-coder", PreTokenizer((SEED_CODER,))),
    ("bailingmoe bailingmoe2 llada-moe", PreTokenizer((BAILING,))),
    ("deepseek-llm", PreTokenizer(DEEPSEEK_LLM)),
    ("deepseek-coder", PreTokenizer(DEEPSEEK_CODER)),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", PreTokenizer((r"\p{N}{1,3}", HAN_KANA, DEEPSEEK3))),
    ("falcon", PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"))),
    ("poro-chat bloom gpt3-finnish", PreTokenizer((CLAUSES,))),
    ("viking", PreTokenizer((CLAUSES, r"\p{N}"))),
)
PRE_TOKENIZERS: dict[str, PreTokenizer] = {name: pre for names, pre in _TABLE for name in names.split()}
