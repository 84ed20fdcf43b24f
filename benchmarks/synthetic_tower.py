"""Writes a vision tower of Llama 4's shape with random weights, as an mmproj file: for measuring only.

    python benchmarks/synthetic_tower.py Q8_0 -o mmproj.gguf
    pyllamacpu bench -m mmproj.gguf --image --profile

Tensors of one shape have the same bytes: speed does not depend on them.
"""

from __future__ import annotations

import argparse
from math import prod
from pathlib import Path

import numpy as np

from pyllamacpu.gguf.types import TensorType, parse_type
from pyllamacpu.gguf.values import ValueType
from pyllamacpu.gguf.writer import GGUFWriter
from pyllamacpu.model.vision_llama4 import Llama4VisionConfig, tensors
from pyllamacpu.model.weights import TensorSpec
from pyllamacpu.weights.blocks import quantize

SCOUT = Llama4VisionConfig(5120, 1408, 34, 16, 5632, 336, 14, 2, 1e-5, 10000.0)
HIDDEN = 4096  # rows of the projector's first two matrices


def write(path: Path, kind: TensorType, config: Llama4VisionConfig = SCOUT, hidden: int = HIDDEN) -> None:
    shapes = [(spec.name, _shape(spec, config, hidden), _kind(spec, kind)) for spec in tensors(config, {})]
    with GGUFWriter(path, "clip") as writer:
        _add_metadata(writer, config)
        for name, shape, own in shapes:
            writer.add_tensor(name, shape, own)
        made: dict[tuple[object, ...], bytes] = {}
        for name, shape, own in shapes:
            key = (shape, own, name.endswith("bias"))
            if key not in made:
                made[key] = _values(shape, own, name)
            writer.write(name, made[key])


def _shape(spec: TensorSpec, config: Llama4VisionConfig, hidden: int) -> tuple[int, ...]:
    projector = {
        "mm.model.mlp.1.weight": (hidden, config.width * config.shuffle**2),
        "mm.model.mlp.2.weight": (hidden, hidden),
        "mm.model.fc.weight": (config.dim, hidden),
    }
    return projector.get(spec.name, spec.shape)


def _kind(spec: TensorSpec, kind: TensorType) -> TensorType:
    return kind if spec.kind == "matrix" and spec.name != "v.patch_embd.weight" else TensorType.F32


def _values(shape: tuple[int, ...], kind: TensorType, name: str) -> bytes:
    random = np.random.default_rng(prod(shape))
    spread = np.float32(shape[-1] ** -0.5 if len(shape) > 1 else 0.1)
    values = random.standard_normal(shape, dtype=np.float32) * spread
    if len(shape) == 1 and name.endswith("weight"):
        values += np.float32(1)
    if kind == TensorType.F32:
        return values.tobytes()
    return np.ascontiguousarray(quantize(values, kind, None, threads=2)).tobytes()


def _add_metadata(writer: GGUFWriter, c: Llama4VisionConfig) -> None:
    vision = {
        "projection_dim": c.dim,
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "embedding_length": c.width,
        "feed_forward_length": c.ffn_dim,
        "block_count": c.n_layers,
        "attention.head_count": c.n_heads,
        "projector.scale_factor": c.shuffle,
    }
    writer.add("general.type", "mmproj")
    writer.add("clip.has_vision_encoder", True)
    writer.add("clip.projector_type", "llama4")
    writer.add("clip.use_gelu", True)
    for name, value in vision.items():
        writer.add(f"clip.vision.{name}", value)
    writer.add("clip.vision.attention.layer_norm_epsilon", c.norm_eps, ValueType.FLOAT32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("type", help="of the matrices: Q8_0, F16 ...")
    parser.add_argument("-o", "--output", type=Path, default=Path("mmproj-synthetic.gguf"))
    given = parser.parse_args()
    write(given.output, parse_type(given.type))
    print(given.output)


if __name__ == "__main__":
    main()
