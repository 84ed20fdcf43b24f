"""Measuring models on text: perplexity, divergence from another model, multiple choice, activations.

The methods, their file formats and the numbers are those of llama.cpp's programs llama-perplexity and
llama-imatrix, so that results can be set side by side. `quantize` builds on this package.
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
