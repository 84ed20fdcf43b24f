"""Memory while a checkpoint is read does not grow with the checkpoint: children with little of it.

Covers weights/stream.py.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

from checkpoint_build import safetensors_bytes

MIB = 1 << 20
READ = """
import sys
from pyllamacpu.convert.checkpoint import open_checkpoint
from pyllamacpu.weights.lazy_ops import take_rows, transpose
checkpoint = open_checkpoint(sys.argv[1])
n_bytes = 0
for name, tensor in checkpoint.tensors.items():
    if name.endswith("turned"):
        tensor = transpose(tensor)
    if name.endswith("permuted"):
        tensor = take_rows(tensor, range(tensor.n_rows - 1, -1, -1))
    step = max(1, (1 << 20) // tensor.shape[1])
    for start in range(0, tensor.n_rows, step):
        n_bytes += tensor.read(start, min(start + step, tensor.n_rows)).nbytes
print(n_bytes)
"""


def sparse(path: Path, shapes: dict[str, tuple[str, tuple[int, int]]]) -> int:
    """A safetensors file of holes; returns the number of elements of all matrices."""
    header, offset, total = {}, 0, 0
    for name, (dtype, (rows, columns)) in shapes.items():
        size = rows * columns * {"BF16": 2, "I32": 4, "F16": 2}[dtype]
        header[name] = {"dtype": dtype, "shape": [rows, columns], "data_offsets": [offset, offset + size]}
        offset += size
        total += rows * columns
    content = safetensors_bytes(header, b"")
    with open(path, "wb") as file:
        file.write(content)
        file.truncate(len(content) + offset)
    return total


def read_with(folder: Path, limit: int) -> int:
    """Bytes of float32 read by a child that may have `limit` bytes of memory of its own."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(folder)],
        check=False,
        capture_output=True,
        text=True,
        env={"OPENBLAS_NUM_THREADS": "1", "PATH": "", "PYTHONPATH": ":".join(sys.path)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    assert done.returncode == 0, done.stderr[-500:]
    return int(done.stdout)


def test_larger_than_memory(tmp_path: Path) -> None:
    """512 MiB of plain and permuted matrices in 128 MiB."""
    shapes = {"a.weight": ("BF16", (16384, 8192)), "b.permuted": ("BF16", (16384, 8192))}
    total = sparse(tmp_path / "model.safetensors", shapes)
    assert read_with(tmp_path, 128 * MIB) == 4 * total


def test_turned_and_packed(tmp_path: Path) -> None:
    """What must be held is held once, as it is stored: 192 MiB turned; 64 MiB of 4-bit weights."""
    total = sparse(tmp_path / "model.safetensors", {"a.turned": ("BF16", (12288, 8192))})
    assert read_with(tmp_path, (192 + 128) * MIB) == 4 * total
    shapes = {
        "a.qweight": ("I32", (1024, 16384)),
        "a.qzeros": ("I32", (64, 2048)),
        "a.scales": ("F16", (64, 16384)),
    }
    sparse(tmp_path / "model.safetensors", shapes)
    facts = {"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "gptq_v2"}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": facts}))
    assert read_with(tmp_path, (64 + 128) * MIB) == 4 * 8192 * 16384
