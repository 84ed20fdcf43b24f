"""The types that mixes give to tensors, against llama-quantize's own (tools/make_recipe_fixtures.py)."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest
from conftest import FIXTURES
from quantize_shapes import SHAPES, compressed

from pyllamacpu.errors import ModelError, OptionError
from pyllamacpu.gguf.types import TensorType, parse_type
from pyllamacpu.quantize.file_types import FILE_TYPES, find_file_type, guessed_number, parse_file_type
from pyllamacpu.quantize.recipes import (
    ModelTraits,
    SourceTensor,
    TypeOptions,
    choose_types,
    file_order,
    fitting,
    needs_imatrix,
    quantizable,
)

T = TensorType
EXPECTED: dict[str, dict[str, dict[str, str]]] = json.loads((FIXTURES / "recipes.json").read_text())


def options_of(words: list[str]) -> TypeOptions:
    """The options of a fixture's key, as the command line would make them."""
    values: dict = {"pure": "--pure" in words, "leave_output": "--leave-output-tensor" in words}
    pairs = list(pairwise(words))
    fields = {"--output-tensor-type": "output", "--token-embedding-type": "embedding"}
    values |= {fields[name]: parse_type(value) for name, value in pairs if name in fields}
    named = [value.split("=") for name, value in pairs if name == "--tensor-type"]
    values["by_name"] = tuple((re.compile(p, re.IGNORECASE), parse_type(kind)) for p, kind in named)
    return TypeOptions(**values)


@pytest.mark.parametrize("label", SHAPES)
def test_types_are_those_of_llama_quantize(label: str) -> None:
    shape = SHAPES[label]
    traits = ModelTraits.of(shape.metadata())
    assert EXPECTED[label].keys() >= FILE_TYPES.keys()
    with_matrix = {f"{mix}+" for mix in FILE_TYPES}
    for key in {*EXPECTED[label], *with_matrix}:
        words = key.removesuffix("+").split()
        chosen = choose_types(
            shape.tensors(), parse_file_type(words[-1]), traits, options_of(words[:-1]), key.endswith("+")
        )
        expected = EXPECTED[label].get(key) or EXPECTED[label][key.removesuffix("+")]
        found = compressed({name: choice.kind.name.lower() for name, choice in chosen.items()})
        assert found == expected, (label, key)


def test_what_does_not_fit_says_so() -> None:
    shape = SHAPES["SmolLM2-135M"]
    traits = ModelTraits.of(shape.metadata())
    chosen = choose_types(shape.tensors(), parse_file_type("Q4_K_M"), traits, TypeOptions(), False)
    q, down = chosen["blk.9.attn_q.weight"], chosen["blk.9.ffn_down.weight"]
    assert (q.kind, q.wanted, q.fell_back) == (T.Q5_0, T.Q4_K, True)
    assert (down.kind, down.fell_back) == (T.Q4_K, False)


@pytest.mark.parametrize(
    ("kind", "cols", "becomes"),
    [
        (T.Q4_K, 512, T.Q4_K),
        (T.Q4_K, 96, T.Q5_0),
        (T.Q5_K, 96, T.Q5_1),
        (T.Q6_K, 96, T.Q8_0),
        (T.Q3_K, 96, T.Q4_0),
        (T.TQ1_0, 96, T.Q4_0),
        (T.IQ1_M, 96, T.IQ4_NL),
        (T.IQ4_XS, 96, T.IQ4_NL),
        (T.Q2_K, 40, T.F16),
        (T.MXFP4, 40, T.F16),
        (T.F16, 7, T.F16),
    ],
)
def test_fitting(kind: TensorType, cols: int, becomes: TensorType) -> None:
    assert fitting(kind, cols) == becomes


def test_names_and_numbers() -> None:
    assert parse_file_type(" q4_k_m ").number == 15
    assert (parse_file_type("Q4_K").name, parse_file_type("Q4_K").mix) == ("Q4_K", "Q4_K_M")
    assert parse_file_type("7").base == T.Q8_0
    assert parse_file_type("0").name == "F32" and parse_file_type("copy").copies
    assert find_file_type("model.gguf") is None and find_file_type("4") is None and find_file_type("") is None
    with pytest.raises(OptionError, match="unknown type 'Q9_K'; known types: Q4_0, "):
        parse_file_type("Q9_K")


def test_a_guess_goes_by_most_tensors() -> None:
    assert guessed_number([T.F32, T.Q4_K, T.Q4_K]) == 1024 | 15
    assert guessed_number([T.F16, T.F16, T.F32]) == 1024 | 1
    assert guessed_number([T.NVFP4]) == 1024


def test_which_tensors_are_quantized() -> None:
    for name in ("blk.0.attn_q.weight", "output.weight", "blk.3.ffn_up_exps.weight"):
        assert quantizable(name, (2, 256))
    for name in ("blk.0.attn_q.bias", "blk.0.ffn_gate_inp.weight", "blk.0.attn_q_norm.weight"):
        assert not quantizable(name, (2, 256))
    assert not quantizable("blk.0.attn_q.weight", (256,))
    assert not quantizable("blk.0.attn_q.weight", (1, 256))
    assert quantizable("blk.0.ffn_up_exps.weight", (2, 1, 256))


def test_which_types_need_importance() -> None:
    q2_k, q2_k_s = parse_file_type("Q2_K"), parse_file_type("Q2_K_S")
    assert needs_imatrix("blk.0.attn_q.weight", T.Q2_K, q2_k_s)
    assert not needs_imatrix("blk.0.attn_q.weight", T.Q2_K, q2_k)
    assert needs_imatrix("blk.0.attn_q.weight", T.IQ2_S, q2_k)
    assert not needs_imatrix("token_embd.weight", T.IQ2_S, q2_k)
    assert not needs_imatrix("blk.0.attn_q.weight", T.IQ3_S, q2_k)


def test_layers_come_in_the_order_of_their_numbers() -> None:
    names = ["blk.10.a", "token_embd.weight", "blk.2.b", "blk.2.a", "output.weight"]
    assert file_order(names) == ["output.weight", "token_embd.weight", "blk.2.a", "blk.2.b", "blk.10.a"]


def test_facts_of_a_model() -> None:
    traits = ModelTraits.of(
        {"general.architecture": "x", "x.block_count": 80, "x.attention.head_count": [64, 8]}
    )
    assert traits == ModelTraits("x", 80, 64, 64, 0) and not traits.grouped and not traits.is_70b
    with pytest.raises(ModelError, match="block_count"):
        ModelTraits.of({"general.architecture": "x"})
    with pytest.raises(ModelError, match="whole number"):
        ModelTraits.of({"general.architecture": "x", "x.block_count": "many"})


def test_architectures_with_other_mixes_are_refused() -> None:
    traits, tensor = ModelTraits("falcon", 4, 4, 1, 0), SourceTensor("blk.0.attn_q.weight", (2, 256), T.F16)
    for mix, options in (("Q4_K_M", TypeOptions(pure=True)), ("F16", TypeOptions())):
        assert choose_types([tensor], parse_file_type(mix), traits, options, False)
    with pytest.raises(ModelError, match="--pure"):
        choose_types([tensor], parse_file_type("Q4_K_M"), traits, TypeOptions(), False)


def test_exact_types_come_first() -> None:
    traits, tensor = ModelTraits("llama", 4, 4, 1, 0), SourceTensor("output.weight", (2, 256), T.F16)
    options = TypeOptions(output=T.Q8_0, exact={"output.weight": T.Q5_K})
    assert (
        choose_types([tensor], parse_file_type("Q4_K_M"), traits, options, False)[tensor.name].kind == T.Q5_K
    )
