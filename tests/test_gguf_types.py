import gguf
import pytest

from pyllamacpu.errors import OptionError
from pyllamacpu.gguf.types import REMOVED_TYPES, TensorType, parse_type

RUNNABLE = """
F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S
IQ3_XXS IQ3_S IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4
"""


@pytest.mark.parametrize("kind", [t for t in TensorType if t.name in gguf.GGMLQuantizationType.__members__])
def test_layouts_are_those_of_the_gguf_package(kind: TensorType) -> None:
    theirs = gguf.GGMLQuantizationType[kind.name]
    assert theirs.value == kind
    if (
        kind is not TensorType.Q8_1
    ):  # the package still has the size from before its float32 scales became float16
        assert gguf.GGML_QUANT_SIZES[theirs] == (kind.block_size, kind.block_bytes)


def test_no_type_of_the_gguf_package_is_missing() -> None:
    assert {t.name for t in gguf.GGMLQuantizationType} <= set(TensorType.__members__)
    assert not set(REMOVED_TYPES) & set(TensorType)


def test_the_runnable_types() -> None:
    assert {t.name for t in TensorType if t.runnable} == set(RUNNABLE.split())


def test_row_bytes() -> None:
    assert TensorType.F16.row_bytes(7) == 14
    assert TensorType.Q4_0.row_bytes(96) == 54
    assert TensorType.Q6_K.row_bytes(512) == 420
    with pytest.raises(OptionError, match="multiple of 256"):
        TensorType.Q4_K.row_bytes(96)


def test_types_by_name() -> None:
    assert parse_type("q4_k") is TensorType.Q4_K
    assert parse_type(" BF16 ") is TensorType.BF16
    with pytest.raises(OptionError, match="q9_9"):
        parse_type("q9_9")
