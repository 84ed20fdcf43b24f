"""Rotary position embedding (arXiv 2104.09864): the frequency of each pair of dimensions."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import ModelError
from pyllamacpu.model.config import ModelConfig, RopeScaling
from pyllamacpu.units import exact


def inverse_frequencies(
    config: ModelConfig, divisors: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """Radians per position for each pair, (rope_dim / 2,) float32.

    `divisors` is the tensor rope_freqs.weight, (rope_dim / 2,), with which Llama 3.1 and later stretch their
    context.
    """
    pairs = np.arange(0, config.rope_dim, 2, dtype=np.float32) / np.float32(config.rope_dim)
    frequencies = (1.0 / np.power(np.float32(config.rope_theta), pairs, dtype=np.float32)).astype(np.float32)
    if divisors is not None:
        if divisors.shape != frequencies.shape or not np.all(np.isfinite(divisors)) or np.any(divisors == 0):
            raise ModelError(
                f"rope_freqs.weight has shape {divisors.shape}; {frequencies.shape[0]} finite, "
                "non-zero divisors are needed"
            )
        frequencies = (frequencies / divisors).astype(np.float32)
    return _scaled(frequencies, config)


def _scaled(frequencies: npt.NDArray[np.float32], config: ModelConfig) -> npt.NDArray[np.float32]:
    scaling = config.rope_scaling
    if scaling.kind == "none":
        return frequencies
    stretched: npt.NDArray[np.float32] = (frequencies / np.float32(scaling.factor)).astype(np.float32)
    if scaling.kind == "linear":
        return stretched
    keep = _yarn_ramp(config.rope_dim, config.rope_theta, scaling) * np.float32(scaling.ext_factor)
    mixed: npt.NDArray[np.float32] = (stretched * (1 - keep) + frequencies * keep).astype(np.float32)
    return mixed


def _yarn_ramp(dim: int, theta: float, scaling: RopeScaling) -> npt.NDArray[np.float32]:
    """1 for the pairs that keep their frequency, 0 for those that are stretched (arXiv 2309.00071, section
    3.2).
    """

    if theta <= 1:
        raise ModelError(
            f"YaRN needs a rope base above 1, not {exact(theta)}: in the file, or as rope_freq_base"
        )

    def pair_of(rotations: float) -> float:
        return dim * math.log(scaling.original_context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_of(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_of(scaling.beta_slow)), dim - 1)
    ramp = (np.arange(dim // 2, dtype=np.float32) - low) / max(high - low, 0.001)
    keep: npt.NDArray[np.float32] = (1 - np.clip(ramp, 0, 1)).astype(np.float32)
    return keep
