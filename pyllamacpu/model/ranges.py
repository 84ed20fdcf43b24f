"""What numbers of a model's metadata can be: the reader refuses others, and the converter writes none."""

from __future__ import annotations

from typing import TypeAlias

Range: TypeAlias = tuple[float, float]

NORM_EPS: Range = (0.0, 0.1)
ROPE_THETA: Range = (1e-3, 1e15)
ROPE_FACTOR: Range = (1e-3, 1e6)
ATTENTION_FACTOR: Range = (1e-6, 1e6)  # of YaRN, by which attention's temperature is multiplied
YARN_BETA: Range = (1e-6, 1e6)
YARN_EXTRAPOLATION: Range = (-1e6, 1e6)
YARN_MULTIPLIER: Range = (0.0, 1e6)
SHUFFLE_RATIO: Range = (0.01, 1.0)
MAX_DIM = 1 << 24  # of all sizes in elements
