"""Make tests/fixtures/checkpoints: small files of every checkpoint kind, and the values they hold.

    python tools/make_checkpoint_fixtures.py [NAME ...]

Needs torch and numpy. `torch.bin` and `torch_legacy.bin` hold tensors of many types and layouts, saved by
torch in its two file formats; `torch.npz` holds the same values, 8- and 16-bit floats as their bits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "checkpoints"
BITS = {
    torch.bfloat16: torch.uint16,
    torch.float16: torch.uint16,
    torch.float8_e4m3fn: torch.uint8,
    torch.float8_e5m2: torch.uint8,
}


def bits(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's elements as numpy has them."""
    plain = tensor.detach().contiguous()
    return plain.view(BITS[plain.dtype]).numpy() if plain.dtype in BITS else plain.numpy()


def torch_values(legacy: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    base = torch.randn(12, 10)
    cube = torch.randn(3, 4, 5)
    values: dict[str, torch.Tensor] = {
        "plain": base,
        "same_storage": base,
        "rows": base[3:7],
        "columns": base[:, 2:6],
        "every_third_row": base[1::3],
        "every_second": base[::2, 1::4],
        "transposed": base.t(),
        "transposed_part": base[:, :5].t(),
        "one_row": base[4:5],
        "one_column": base[:, 3:4],
        "axes_201": cube.permute(2, 0, 1),
        "axes_021": cube.permute(0, 2, 1),
        "axes_021_part": cube.permute(0, 2, 1)[:, 1:3],
        "parameter": torch.nn.Parameter(torch.randn(4, 3)),
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 5),
        "bf16": torch.randn(5, 6).bfloat16(),
        "f16": torch.randn(5, 6).half(),
        "f64": torch.randn(2, 3, dtype=torch.float64),
        "bool": torch.rand(4, 4) > 0.5,
    }
    for kind in (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8):
        values[str(kind).removeprefix("torch.")] = torch.randint(0, 100, (3, 4)).to(kind)
    if not legacy:  # types that the older format cannot hold
        values["f8_e4m3"] = torch.randn(4, 5).to(torch.float8_e4m3fn)
        values["f8_e5m2"] = torch.randn(4, 5).to(torch.float8_e5m2)
        values["uint16"] = torch.arange(6).to(torch.uint16)
    return values


class Holder(torch.nn.Module):
    """A module, for a state dict with the metadata that torch gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)
        self.norm = torch.nn.LayerNorm(3)


def make_torch() -> None:
    for name, legacy in (("torch.bin", False), ("torch_legacy.bin", True)):
        values = torch_values(legacy)
        torch.save(values, OUT / name, _use_new_zipfile_serialization=not legacy)
    np.savez_compressed(OUT / "torch.npz", **{key: bits(value) for key, value in torch_values(False).items()})
    module = Holder()
    state = module.state_dict()
    torch.save(state, OUT / "torch_module.bin")
    torch.save({"epoch": 3, "loss": 0.5, "state_dict": state}, OUT / "torch_training.bin")
    torch.save(
        {key: torch.nn.Parameter(value) for key, value in state.items()},
        OUT / "torch_protocol5.bin",
        pickle_protocol=5,
    )
    np.savez_compressed(OUT / "torch_module.npz", **{key: bits(value) for key, value in state.items()})


MAKERS: dict[str, Callable[[], None]] = {"torch": make_torch}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the checkpoint fixtures of the tests.")
    parser.add_argument("names", nargs="*", choices=[[], *MAKERS], help="which ones (all)")
    names = parser.parse_args().names or list(MAKERS)
    OUT.mkdir(parents=True, exist_ok=True)
    for name in names:
        MAKERS[name]()
    versions = [
        "script tools/make_checkpoint_fixtures.py",
        f"python {sys.version.split()[0]}",
        f"torch {torch.__version__}",
        f"numpy {np.__version__}",
    ]
    (OUT / "MADE_BY").write_text("\n".join(versions) + "\n")


if __name__ == "__main__":
    main()
