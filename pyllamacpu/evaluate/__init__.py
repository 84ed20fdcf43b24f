"""Measuring models on text: perplexity, divergence from another model, multiple choice, activations.

The methods, their file formats and the numbers are those of llama.cpp's programs llama-perplexity and
llama-imatrix, so that results can be set side by side. `quantize` builds on this package.

Windows, BOS, scored tokens, strides and errors are llama-perplexity's, and so are its report of
divergences and its task files (the same tasks of a larger file when fewer are asked for). The two models
of a KL divergence run side by side, a few hundred rows of logits at a time: no file of logits is needed,
though llama-perplexity's can be read and written. Divergences are exact to about 1e-6 of their value,
where that file's 16 bits end near 1e-4. The answers of a task share their context's KV pages, and score
as each would alone, bit for bit.

`perplexity(engine, tokens)`, `kl_divergence(base, engine, tokens)`; for comparing many models with one,
`record(base, tokens)` and `divergence_from(recorded, engine)`.
"""

from __future__ import annotations

from pyllamacpu.evaluate.divergence import Divergence, Recorded, divergence_from, kl_divergence, record
from pyllamacpu.evaluate.perplexity import Perplexity, perplexity
from pyllamacpu.evaluate.windows import Windows, windows

__all__ = [
    "Divergence",
    "Perplexity",
    "Recorded",
    "Windows",
    "divergence_from",
    "kl_divergence",
    "perplexity",
    "record",
    "windows",
]
