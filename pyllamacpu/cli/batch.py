"""`pyllamacpu batch`: a file of requests in OpenAI's batch format, answered without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pyllamacpu.cli.disk_options import disk_options
from pyllamacpu.cli.images import image_access, served_image_options
from pyllamacpu.cli.options import force_option, option_files
from pyllamacpu.cli.param_types import SIZE, Whole
from pyllamacpu.cli.serve import _models, adapter_options, engine_options, pool_options, served_models
from pyllamacpu.cli.shield_options import shield_options, take_shield
from pyllamacpu.cli.wrapping import say
from pyllamacpu.progress import notify, progress_line

_positive = Whole(min=1)
_ITL_TARGET = 1000.0  # milliseconds in a step: nobody watches the tokens, prompts are read in large pieces


@click.command()
@click.argument("source", metavar="IN.jsonl", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT.jsonl", type=click.Path(path_type=Path))
@served_models
@engine_options
@adapter_options
@click.option("-np", "--parallel", type=_positive, default=16, show_default=True, help="Answers at a time.")
@click.option(
    "--cache-ram", type=SIZE, metavar="SIZE", help="Keys and values of running and earlier answers."
)
@disk_options
@click.option("--memory", type=SIZE, metavar="SIZE", help="Weights of all loaded models.")
@shield_options
@served_image_options
@click.option("--strict", is_flag=True, help="Refuse requests with unknown fields.")
@click.option(
    "--ray",
    "cluster",
    metavar="ADDRESS",
    help="Answer on every node of a Ray cluster: host:port, ray://host:port or auto. Each needs the model, "
    "at the same path or by a name.",
)
@force_option
def batch(**given: Any) -> None:
    """Answer a file of requests in OpenAI's batch format: chats, completions, embeddings.

    Each line is an object of custom_id, method, url and body. OUT gets a line for each as it is ready; a line
    that cannot be answered gets its error; what the guard or the shield blocks ends with content_filter, and
    why. The same command again goes on where a run was ended.

    \b
    Examples:
      pyllamacpu batch -m llama3.2:1b requests.jsonl answers.jsonl
      pyllamacpu batch -m llama3.2:1b --ray head:6379 requests.jsonl answers.jsonl
    """
    from pyllamacpu.server.batch import BatchOptions, run_batch
    from pyllamacpu.store import model_files

    models = _models(given)
    pool = pool_options({**given, "itl_target": _ITL_TARGET, "keep_alive": None, "stop_loops": True})
    images, shield = image_access(given), take_shield(given)
    options = BatchOptions(models, pool, given["strict"], shield, images, given["force"])
    inputs = [file for model in models for file in model_files(model.path)] + option_files("target")
    with progress_line(lines=True) as show:
        if given["cluster"] is None:
            counts = run_batch(given["source"], given["target"], inputs, options, show)
        else:
            from pyllamacpu.server.ray_batch import run_on_ray

            counts = run_on_ray(given["cluster"], given["source"], given["target"], inputs, options, show)
    failed = f" ({counts.kept_failed} of them failed: without their lines they are asked again)"
    kept = f", {counts.kept} were there{failed if counts.kept_failed else ''}" if counts.kept else ""
    blocked = f" ({counts.blocked} of them blocked)" if counts.blocked else ""
    if counts.changed:
        what = "1 request has" if counts.changed == 1 else f"{counts.changed} requests have"
        say(
            f"warning: {given['source']}: {what} another content than when the line in {given['target']} was "
            "written, which stays; to ask again, give another custom_id or remove that line"
        )
    notify(f"{given['target']}: {counts.answered} answered{blocked}, {counts.failed} failed{kept}")
