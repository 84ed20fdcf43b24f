"""`pyllamacpu convert`: a checkpoint, an adapter or a GGUF file becomes a GGUF file."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyllamacpu.cli.adapter_options import adapter_files
from pyllamacpu.cli.options import force_option
from pyllamacpu.cli.param_types import SIZE
from pyllamacpu.progress import CONTROL, byte_bar, notify, one_line, visible
from pyllamacpu.units import decimal_bytes

if TYPE_CHECKING:
    from pyllamacpu.convert.conversion import Conversion, ConvertOptions
    from pyllamacpu.weights.output import ModelOutput


@click.command(context_settings={"show_default": False})
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.option(
    "--outfile",
    "-o",
    metavar="FILE",
    help="Where to write; {name} and {ftype} are filled in. [{name}-{ftype}.gguf]",
)
@click.option(
    "--outtype",
    default="auto",
    metavar="TYPE",
    help="f32, f16, bf16, q8_0, any type of `quantize`, or auto: the checkpoint's 16-bit type. [auto]",
)
@click.option("--vocab-only", is_flag=True, help="Write the tokenizer and the metadata without tensors.")
@click.option("--mmproj", is_flag=True, help="Write the vision tower alone.")
@click.option("--dry-run", is_flag=True, help="Print what would be written, with sizes, and write nothing.")
@click.option("--model-name", metavar="NAME", help="general.name; otherwise it is taken from the source.")
@click.option(
    "--metadata",
    multiple=True,
    metavar="KEY=TYPE:VALUE",
    help="Set a metadata key (str, bool, int, float …).",
)
@click.option("--remove-metadata", multiple=True, metavar="KEY", help="Leave a metadata key out.")
@click.option(
    "--split-max-size",
    type=SIZE,
    metavar="N(K|M|G)",
    help="Begin a new part before one has more bytes of tensors.",
)
@click.option(
    "--split-max-tensors", type=click.IntRange(min=1), metavar="N", help="Tensors of one part at most."
)
@click.option(
    "--base", type=click.Path(path_type=Path), metavar="FOLDER", help="LoRA: where the base's config.json is."
)
@click.option(
    "--lora", multiple=True, metavar="FILE[:SCALE]", help="Merge a LoRA adapter (GGUF) into a GGUF model."
)
@click.option(
    "--drop-extra-tokens", is_flag=True, help="Leave out added tokens that the model has no rows for."
)
@click.option("--ignore-config", multiple=True, metavar="KEY", help="A config key that changes nothing.")
@force_option
@click.option("--threads", "-t", type=click.IntRange(min=1), metavar="N", help="Threads. [all]")
def convert(source: Path, dry_run: bool, **given: Any) -> None:
    """Make a GGUF file of a checkpoint, without torch and without holding it in memory.

    SRC is a folder of Hugging Face (safetensors or pytorch_model*.bin, also GPTQ, AWQ, FP8,
    compressed-tensors, bitsandbytes and MLX), one of Meta or Mistral (consolidated.*, params.json), a LoRA
    adapter of PEFT or MLX, or a GGUF file.

    \b
    Examples:
      pyllamacpu convert Llama-3.2-1B-Instruct --outtype q4_k_m
      pyllamacpu convert SmolLM2-135M --outfile {name}-{ftype}.gguf --dry-run
      pyllamacpu convert my-lora --base Llama-3.2-1B-Instruct -o my-lora.gguf
      pyllamacpu convert model-f16.gguf --lora my-lora.gguf -o merged.gguf
      pyllamacpu convert Llama-4-Scout-17B-16E-Instruct --outtype q4_k_m
      pyllamacpu convert big.gguf -o part.gguf --split-max-size 4G
    """
    from pyllamacpu.convert.sources import plan_conversion

    conversion = plan_conversion(source, _options(**given))
    for part in conversion.all:
        for note in part.notes:
            notify(f"note: {note}")
    for part in conversion.all:
        if dry_run:
            _show(part.output)
        else:
            _write(part)


def _write(conversion: Conversion) -> None:
    begin = time.monotonic()
    output = conversion.output
    with byte_bar(output.n_bytes) as show:
        for progress in output.write(conversion.threads):
            show(progress.done, progress.tensor.name)
    seconds = max(time.monotonic() - begin, 1e-3)
    for path in output.paths:
        click.echo(visible(str(path), sys.stdout))
    notify(
        f"{conversion.file_type}: {len(output.tensors)} tensors, {decimal_bytes(output.n_bytes)} in "
        f"{seconds:.1f} s ({decimal_bytes(output.n_bytes / seconds)}/s)"
    )


def _options(**given: Any) -> ConvertOptions:
    from pyllamacpu.convert.conversion import ConvertOptions
    from pyllamacpu.convert.metadata_edits import MetadataEdits, parse_metadata
    from pyllamacpu.weights.output import SplitLimits

    return ConvertOptions(
        outfile=given["outfile"],
        outtype=given["outtype"],
        vocab_only=given["vocab_only"],
        name=given["model_name"],
        metadata_edits=MetadataEdits(
            tuple(map(parse_metadata, given["metadata"])), frozenset(given["remove_metadata"])
        ),
        limits=SplitLimits(given["split_max_tensors"] or 0, given["split_max_size"] or 0),
        drop_extra_tokens=given["drop_extra_tokens"],
        ignored_config=frozenset(given["ignore_config"]),
        mmproj=given["mmproj"],
        base=given["base"],
        adapters=adapter_files(given["lora"]),
        force=given["force"],
        threads=given["threads"],
    )


def _show(output: ModelOutput) -> None:
    """Metadata, tensors with their types and sizes, files."""
    for key in output.metadata:
        click.echo(f"{one_line(key.name):<42} {_value(key.value).translate(CONTROL)}")
    for path, tensors in zip(output.paths, output.parts, strict=True):
        size = sum(tensor.n_bytes for tensor in tensors)
        click.echo(f"\n{path}: {len(tensors)} tensors, {decimal_bytes(size)}")
        for tensor in tensors:
            shape = " x ".join(map(str, tensor.shape))
            origin = f"{tensor.tensor.dtype} -> {tensor.kind.name}"
            name, size_of_it = one_line(tensor.name), decimal_bytes(tensor.n_bytes)
            click.echo(f"  {name:<34} {shape:<22} {origin:<18} {size_of_it:>10}")
    if output.n_elements:
        bits = 8 * output.n_bytes / output.n_elements
        click.echo(
            f"\n{decimal_bytes(output.n_bytes)} in all, {bits:.2f} bits per weight; nothing was written"
        )


def _value(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        text = value.replace("\n", "\\n")
        return text if len(text) <= 60 else f"{text[:57]}..."
    if hasattr(value, "__len__"):
        return f"{len(value)} values"
    return str(value)
