"""Tensors of GGUF files, row by row: what the reader gives as a whole, of either byte order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf_build import small_file
from quantize_model import arrays, values, write_model

from pyllamacpu.errors import ModelError
from pyllamacpu.gguf import GGUFFile, TensorType
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.weights.blocks import quantize
from pyllamacpu.weights.gguf_tensors import gguf_tensor

T = TensorType
NAME, SHAPE = "blk.0.ffn_up_exps.weight", (3, 5, 96)


def write(path: Path, kind: TensorType) -> Path:
    stack = values(SHAPE, 3)
    if kind == T.BF16:
        stored = (stack.view(np.uint32) >> 16).astype(np.uint16)
    elif kind in (T.F32, T.F16):
        stored = stack.astype({T.F32: np.float32, T.F16: np.float16}[kind])
    else:
        stored = quantize(stack.reshape(-1, SHAPE[-1]), kind).reshape(*SHAPE[:-1], -1)
    return write_model(path, {**arrays(layers=1), NAME: stored}, kinds={NAME: kind})


@pytest.mark.parametrize("kind", [T.F32, T.F16, T.BF16, T.Q8_0, T.IQ4_NL], ids=lambda kind: kind.name)
def test_matrices_of_a_stack_are_one_below_the_other(tmp_path: Path, kind: TensorType) -> None:
    with GGUFFile.open(write(tmp_path / "m.gguf", kind)) as file:
        tensor = gguf_tensor(file, file.tensors[NAME])
        assert (tensor.shape, tensor.dtype) == ((15, 96), kind.name)
        whole = np.array(file.data(NAME))
        numbers = dequantize(whole, kind, (15, 96))
        for start, stop in ((0, 15), (4, 11), (7, 7), (14, 15)):
            raw = tensor.raw(start, stop)
            expected = whole[start * kind.row_bytes(96) : stop * kind.row_bytes(96)]
            assert raw.tobytes() == expected.tobytes() and len(raw) == stop - start
            np.testing.assert_array_equal(tensor.read(start, stop), numbers[start:stop])
    np.testing.assert_array_equal(tensor.read(), numbers)  # also after the file was closed


def test_vectors_are_one_row(tmp_path: Path) -> None:
    with GGUFFile.open(write(tmp_path / "m.gguf", T.F32)) as file:
        norm = gguf_tensor(file, file.tensors["output_norm.weight"])
        assert norm.shape == (1, 32)
        assert norm.raw().tobytes() == file.data("output_norm.weight").tobytes()
        assert norm.source == f"{tmp_path / 'm.gguf'}: output_norm.weight"


def test_both_byte_orders_give_the_same(tmp_path: Path) -> None:
    found = []
    for big in (False, True):
        path = tmp_path / f"{big}.gguf"
        path.write_bytes(small_file(big=big).bytes())
        with GGUFFile.open(path) as file:
            found.append({n: gguf_tensor(file, info).raw().tobytes() for n, info in file.tensors.items()})
    assert found[0] == found[1] and len(found[0]) == 3


def test_whole_numbers_can_be_copied_but_are_not_weights(tmp_path: Path) -> None:
    table = np.arange(64, dtype=np.int32).reshape(2, 32)
    with GGUFFile.open(write_model(tmp_path / "m.gguf", {**arrays(), "table": table})) as file:
        tensor = gguf_tensor(file, file.tensors["table"])
        assert tensor.raw(1, 2).tobytes() == table[1].tobytes()
        with pytest.raises(ModelError, match="I32 cannot be decoded"):
            tensor.read()
