"""`pyllamacpu serve`: models over HTTP, for programs of many dialects."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyllamacpu.cli.adapter_options import adapter_files, named_adapter
from pyllamacpu.cli.disk_options import disk_options
from pyllamacpu.cli.images import image_access, served_image_options
from pyllamacpu.cli.loading_options import loading, loading_options
from pyllamacpu.cli.options import (
    CACHE_TYPES,
    draft_options,
    draft_source,
    force_option,
    option_files,
    options,
    precision_option,
    read_text,
    template_arguments,
    template_options,
)
from pyllamacpu.cli.param_types import SIZE, THREADS, Number, Whole
from pyllamacpu.cli.shield_options import shield_options, take_shield
from pyllamacpu.errors import OptionError, PyllamacpuError

if TYPE_CHECKING:
    from pyllamacpu.server.app import ServeOptions
    from pyllamacpu.server.models import PoolOptions
    from pyllamacpu.server.served_files import ServedFile

_positive = Whole(min=1)

served_models = click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    metavar="[NAME=]MODEL",
    help="A GGUF file, a name from `pyllamacpu list` or hf.co/user/repo[:quant]; else the starter model. "
    "Can be repeated: the first is the default, the others are loaded when asked for.",
)
adapter_options = options(
    click.option(
        "--lora",
        multiple=True,
        metavar="[[NAME][@MODEL]=]FILE[:SCALE]",
        help="Load a LoRA adapter beside MODEL, or else the first one (can be repeated). Requests say which "
        "they want, by `lora` or its NAME as the model; those that do not get all.",
    ),
    click.option(
        "--lora-init-without-apply", is_flag=True, help="Apply no adapter to requests that do not ask for it."
    ),
)
engine_options = options(
    click.option(
        "-c", "--ctx-size", type=Whole(min=0), help="Context of an answer in tokens; 0: the model's."
    ),
    click.option("-t", "--threads", type=THREADS, help="CPU threads; without it the machine's cores."),
    click.option(
        "-ctk", "--cache-type-k", type=click.Choice(CACHE_TYPES, False), help="Type of the cached keys."
    ),
    click.option(
        "-ctv", "--cache-type-v", type=click.Choice(CACHE_TYPES, False), help="Type of the cached values."
    ),
    precision_option,
    click.option(
        "--pooling",
        type=click.Choice(("none", "mean", "cls", "last"), False),
        help="How embeddings join the vectors of a text's tokens: their mean, the first (cls), the last, or "
        "not at all (/embedding only). [default: as the file says, else mean]",
    ),
    template_options,
    loading_options,
    draft_options,
)


@click.command()
@served_models
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any free one."
)
@engine_options
@adapter_options
@click.option("-np", "--parallel", type=_positive, default=16, show_default=True, help="Answers at a time.")
@click.option("--max-queue", type=Whole(min=0), default=64, show_default=True, help="Answers that may wait.")
@click.option(
    "--api-key", multiple=True, metavar="KEY", help="A key that clients must give (can be repeated)."
)
@click.option("--api-key-file", type=click.Path(path_type=Path), help="A file of keys, one a line.")
@click.option("--no-api-key", is_flag=True, help="Really serve other machines without a key.")
@click.option(
    "--allowed-hosts", metavar="NAMES", help="Names by which the server is called, joined by commas."
)
@click.option(
    "--cors-origins", metavar="ORIGINS", help="Web sites that may use it, joined by commas; * is any."
)
@click.option("--metrics/--no-metrics", default=True, show_default=True, help="Show /metrics (Prometheus).")
@click.option("--log-file", type=click.Path(path_type=Path), help="Write the log there instead of stderr.")
@force_option
@click.option(
    "--itl-target",
    type=Number(min=1),
    default=100.0,
    show_default=True,
    metavar="MS",
    help="Milliseconds between two tokens of an answer while prompts are read beside it.",
)
@click.option(
    "--cache-ram", type=SIZE, metavar="SIZE", help="Keys and values of running and earlier answers."
)
@disk_options
@click.option("--memory", type=SIZE, metavar="SIZE", help="Weights of all loaded models.")
@click.option("--keep-alive", type=float, metavar="SECONDS", help="Unload a model that was idle so long.")
@click.option(
    "--grace",
    type=Number(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Time that running answers get when the server is told to stop.",
)
@click.option(
    "--stop-loops/--no-stop-loops",
    default=True,
    show_default=True,
    help="End answers that repeat themselves; a request's stop_loops goes before.",
)
@shield_options
@served_image_options
@click.option("--strict", is_flag=True, help="Refuse requests with unknown fields.")
@click.option(
    "--ray", "cluster", metavar="ADDRESS", help="Serve on a Ray cluster: host:port, ray://host:port or auto."
)
@click.option("--replicas", type=_positive, help="Engines on the cluster, one a node.  [default: 1]")
def serve(**parameters: Any) -> None:
    """Serve models over HTTP to programs made for OpenAI, Anthropic, Ollama and llama.cpp.

    \b
    Examples:
      pyllamacpu serve -m model.gguf
      pyllamacpu serve -m small=model.gguf -m large=user/repo:Q4_K_M --port 8000
      pyllamacpu serve -m llama3.2:1b --ray auto --replicas 4
    """
    options = _options(parameters)
    _check_log(parameters, [model.path for model in options.models])
    _start_log(parameters["log_file"])
    _check_exposure(parameters["host"], bool(options.access.keys), parameters["no_api_key"])

    def on_ready(address: str, model: int = 0) -> None:
        click.echo(f"serving {options.models[model].name} at {address} (Ctrl-C stops)", err=True)

    if parameters["cluster"] is not None:
        _serve_on_ray(parameters, options, on_ready)
        return
    if parameters["replicas"] is not None:
        raise OptionError("--replicas is for a cluster: give --ray too")
    from pyllamacpu.server.app import make_app
    from pyllamacpu.server.run import run

    app = make_app(options)

    def on_loaded(address: str) -> None:
        on_ready(address, int(app.state.server.failure is not None))

    if not run(app, parameters["host"], parameters["port"], parameters["grace"], on_loaded):
        raise OptionError(
            f"cannot listen on {parameters['host']} port {parameters['port']}: see the log above"
        )
    if app.state.server.serves_nothing:
        failed = app.state.server.failure
        if parameters["log_file"] is not None:
            logging.getLogger("pyllamacpu.server").error("%s", failed)
        raise PyllamacpuError(failed)


def _serve_on_ray(parameters: dict[str, Any], options: ServeOptions, on_ready: Callable[[str], None]) -> None:
    from pyllamacpu.server.ray_app import Replicas, serve_on_ray

    if parameters["port"] == 0:
        raise OptionError("--port 0: Ray Serve needs a port's number")
    replicas = Replicas(parameters["replicas"] or 1, options.pool.load.n_threads or 0, parameters["grace"])
    listen = parameters["host"], parameters["port"]
    serve_on_ray(parameters["cluster"], options, replicas, listen, on_ready)


def _check_log(parameters: dict[str, Any], models: list[Path]) -> None:
    """Raises OutputError for a log file that is read here, or is there and is not a log."""
    from pyllamacpu.files import FileKind, check_output, read_start
    from pyllamacpu.store import model_files

    def is_log(path: Path) -> bool:
        return re.match(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ ", read_start(path, 40)) is not None

    if parameters["log_file"] is not None:
        inputs = [file for model in models for file in model_files(model)]
        inputs += option_files("log_file")
        kind = FileKind("a log", is_log)
        check_output(parameters["log_file"], inputs, kind, parameters["force"], in_place=True)


def _start_log(path: Path | None) -> None:
    form = "%(asctime)s %(levelname)s %(message)s"
    try:
        logging.basicConfig(filename=path, level=logging.INFO, format=form)
    except OSError as error:
        raise OptionError(f"--log-file {path}: {error.strerror}") from error
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def _check_exposure(host: str, has_key: bool, confirmed: bool) -> None:
    from pyllamacpu.server.access import is_loopback

    if not is_loopback(host) and not has_key and not confirmed:
        raise OptionError(
            f"--host {host} lets other machines use this server: give an --api-key, "
            "or --no-api-key if that is meant"
        )


def _options(parameters: dict[str, Any]) -> ServeOptions:
    from pyllamacpu.server.access import AccessOptions
    from pyllamacpu.server.app import ServeOptions

    keys = [*parameters["api_key"]]
    if parameters["api_key_file"] is not None:
        keys += [line.strip() for line in read_text(parameters["api_key_file"]).splitlines()]
        if not any(keys):
            raise OptionError(f"{parameters['api_key_file']}: there is no key in it")
    if any(not key.isascii() or not key.isprintable() for key in keys):
        raise OptionError("--api-key: keys are printable ASCII")
    access = AccessOptions(
        hosts=(*_split(parameters["allowed_hosts"]), parameters["host"].lower()),
        origins=tuple(origin.rstrip("/") for origin in _split(parameters["cors_origins"])),
        keys=tuple(key for key in keys if key),
    )
    return ServeOptions(
        models=_models(parameters),
        pool=pool_options(parameters),
        access=access,
        max_queue=parameters["max_queue"],
        strict=parameters["strict"],
        metrics=parameters["metrics"],
        shield=take_shield(parameters),
        images=image_access(parameters),
    )


def _models(parameters: dict[str, Any]) -> tuple[ServedFile, ...]:
    """Those that are served, with their adapters. Raises StoreError, OptionError."""
    from pyllamacpu.server.served_files import ServedAdapter, check_names, served_file

    models = [served_file(text) for text in parameters["models"] or (None,)]
    applied = not parameters["lora_init_without_apply"]
    if not applied and not parameters["lora"]:
        raise OptionError("--lora-init-without-apply does nothing without --lora FILE")
    for text in parameters["lora"]:
        name, model, rest = named_adapter(text)
        i = next((i for i, file in enumerate(models) if not model or file.is_called(model)), None)
        if i is None:
            names = ", ".join(file.name for file in models)
            raise OptionError(f"--lora {text}: no model is called {model}; there are {names}")
        for path, scale in adapter_files([rest]):
            added = ServedAdapter(name or Path(path).stem, Path(path), scale, applied)
            models[i] = replace(models[i], adapters=(*models[i].adapters, added))
    check_names(models)
    return tuple(models)


def pool_options(parameters: dict[str, Any]) -> PoolOptions:
    from pyllamacpu.api.loading import LoadOptions
    from pyllamacpu.engine.pooling import BY_NAME
    from pyllamacpu.server.models import PoolOptions

    threads, keep_alive = parameters["threads"], parameters["keep_alive"]
    load = LoadOptions(
        n_ctx=parameters["ctx_size"] or 0,
        n_threads=None if threads in (0, -1) else threads,
        type_k=(parameters["cache_type_k"] or "").lower() or None,
        type_v=(parameters["cache_type_v"] or "").lower() or None,
        **loading(parameters),
        precision=(parameters["precision"] or "fast").lower(),
        draft=draft_source(parameters["draft"], parameters["draft_model"]),
        mmproj=parameters.get("mmproj"),
        chat_template=next(iter(template_arguments(parameters["chat_template"]).values()), None),
    )
    return PoolOptions(
        load,
        parallel=parameters["parallel"],
        itl_target=parameters["itl_target"] / 1000,
        kv_bytes=parameters["cache_ram"],
        keep_alive=None if keep_alive is None or keep_alive < 0 else keep_alive,
        memory=parameters["memory"],
        pooling=BY_NAME[parameters["pooling"].lower()] if parameters["pooling"] else None,
        stop_loops=parameters["stop_loops"],
        cache_disk=_checked_folder(parameters["cache_disk"], parameters["cache_disk_limit"]),
        cache_disk_limit=parameters["cache_disk_limit"],
    )


def _checked_folder(folder: Path | None, limit_bytes: int | None) -> Path | None:
    """Raises OptionError for a folder that cannot be used."""
    from pyllamacpu.engine.page_files import open_page_files

    open_page_files(folder, limit_bytes)
    return folder


def _split(text: str | None) -> list[str]:
    return [word.strip().lower() for word in (text or "").split(",") if word.strip()]
