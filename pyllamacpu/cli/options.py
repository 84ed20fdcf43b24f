"""The options that several commands share, with llama-cli's names and short flags."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pyllamacpu.cli.adapter_options import adapter_files, lora_option
from pyllamacpu.cli.disk_options import disk_options
from pyllamacpu.cli.loading_options import loading_options
from pyllamacpu.cli.param_types import THREADS, Whole
from pyllamacpu.cli.wrapping import say
from pyllamacpu.engine.precision import PRECISIONS
from pyllamacpu.errors import ContextError, OptionError
from pyllamacpu.files import read_problem
from pyllamacpu.sampling.options import SamplingOptions  # imports nothing heavy, as sampler.py does

if TYPE_CHECKING:
    from pyllamacpu import Llama
    from pyllamacpu.store.created import ModelCard
    from pyllamacpu.store.paths import PackFolder

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
_SMALLER_CONTEXTS = (32768, 8192, 2048)  # tokens
_BIAS = re.compile(r"(\d{1,18})([+-])(inf|\d+(?:\.\d*)?|\.\d+)\Z", re.IGNORECASE)
_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{1,2})|(.))", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"'": b"'", b'"': b'"', b"\\": b"\\"}


def options(*decorators: Decorator[Any]) -> Decorator[Any]:
    """Several click options as one decorator, shown in the order given."""

    def apply(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


_MODEL = click.option(
    "-m",
    "--model",
    metavar="MODEL",
    help="A GGUF file, a name from `pyllamacpu list` (or `list --known`, such as llama3.2:1b), or "
    "hf.co/user/repo[:quant]; else the starter model.",
)
_positive = Whole(min=1)


def draft_choice(_context: click.Context, _option: click.Parameter, given: str | None) -> str | None:
    """A click callback: "lookup", or None. llama.cpp's number of tokens is of no use."""
    if given is None or given == "lookup":
        return given
    if given.isdecimal():
        say(f"note: --draft {given} does nothing: how many tokens are guessed is chosen from what it saves")
        return None
    raise click.BadParameter(f"{given!r} is not known: give lookup")


draft_options = options(
    click.option(
        "--draft",
        metavar="lookup",
        callback=draft_choice,
        help="Guess tokens ahead by what stood in the text before: faster where an answer quotes. The answer "
        "stays the same.",
    ),
    click.option(
        "-md",
        "--draft-model",
        "--model-draft",
        "--spec-draft-model",
        "draft_model",
        metavar="MODEL",
        help="Guess tokens ahead by this smaller model, which has the same tokens.",
    ),
)


def draft_source(draft: str | None, draft_model: str | None) -> str | None:
    """What --draft and --draft-model mean to `Llama`. Raises click.UsageError for both, StoreError."""
    if draft is not None and draft_model is not None:
        raise click.UsageError("give --draft lookup or --draft-model, not both")
    if draft_model is None:
        return draft
    from pyllamacpu.store import resolve_model

    return str(resolve_model(draft_model))


precision_option = click.option(
    "--precision",
    type=click.Choice(PRECISIONS, False),
    help="Of activations: 8 bits and a residual where it matters most, or everywhere.  [default: fast]",
)
model_option = options(_MODEL)
model_options = options(
    _MODEL,
    click.option(
        "-c",
        "--ctx-size",
        type=Whole(min=0),
        help="Context in tokens; 0 is the model's own size.  [default: that, or less if memory is short]",
    ),
    click.option(
        "-t",
        "--threads",
        type=THREADS,
        help="CPU threads; never more run than CPUs are allowed.  [default: the machine's cores]",
    ),
    click.option(
        "-b",
        "--batch-size",
        type=_positive,
        help="Prompt tokens given to the engine at once.  [default: 512]",
    ),
    click.option(
        "-ub", "--ubatch-size", type=_positive, help="Prompt tokens computed in one step.  [default: 512]"
    ),
    click.option(
        "-ctk",
        "--cache-type-k",
        type=click.Choice(CACHE_TYPES, False),
        help="Type of the cached keys.  [default: f16; f32 with --precision exact]",
    ),
    click.option(
        "-ctv",
        "--cache-type-v",
        type=click.Choice(CACHE_TYPES, False),
        help="Type of the cached values.  [default: f16; f32 with --precision exact]",
    ),
    precision_option,
    lora_option,
    loading_options,
    draft_options,
    disk_options,
    click.option("-v", "--verbose", is_flag=True, help="Say on stderr how fast it runs."),
)

template_options = options(
    click.option(
        "--chat-template",
        metavar="NAME|FILE|TEXT",
        help="Use this format instead of the model's: a name such as llama3, a Jinja file, or Jinja text.",
    ),
)

force_option = click.option("--force", is_flag=True, help="Also replace a file of another kind.")

prompt_options = options(
    click.option("-p", "--prompt", help="The prompt."),
    click.option(
        "-f", "--file", type=click.Path(path_type=Path), help="Read the prompt from this file (- is stdin)."
    ),
    click.option(
        "-e/ ",
        "--escape/--no-escape",
        default=None,
        help=r"Read \n, \t, \\, \" and \xHH as the characters they stand for (on for -p, off for -f).",
    ),
    click.option(
        "-n",
        "--predict",
        "--n-predict",
        type=Whole(min=-2),
        default=-1,
        show_default=True,
        help="Tokens at most; -1 is until the end.",
    ),
    click.option("-r", "--reverse-prompt", multiple=True, help="Stop at this text (can be repeated)."),
)

# Flags, the field of SamplingOptions that they set, type, and help. Defaults are added from that class.
_SAMPLING: tuple[tuple[tuple[str, ...], str, Any, str], ...] = (
    (("-s", "--seed"), "seed", int, "Seed; -1 is a new one each time."),
    (("--temp", "--temperature"), "temperature", float, "Temperature; 0 takes the likeliest token."),
    (("--top-k",), "top_k", int, "Keep the k likeliest tokens; 0 is all."),
    (("--top-p",), "top_p", float, "Keep the likeliest tokens up to this probability."),
    (("--min-p",), "min_p", float, "Drop tokens below this share of the likeliest."),
    (("--typical", "--typical-p"), "typical_p", float, "Locally typical sampling; 1 is off."),
    (("--top-nsigma", "--top-n-sigma"), "top_n_sigma", float, "Logits within n deviations; -1 is off."),
    (("--xtc-probability",), "xtc_probability", float, "Chance of dropping the top choices."),
    (("--xtc-threshold",), "xtc_threshold", float, "Probability from which a choice can be dropped."),
    (("--repeat-last-n",), "repeat_last_n", int, "Tokens that penalties look back on; -1 is all."),
    (("--repeat-penalty",), "repeat_penalty", float, "Penalty for repeated tokens; 1 is off."),
    (("--presence-penalty",), "presence_penalty", float, "Penalty for tokens seen at all."),
    (("--frequency-penalty",), "frequency_penalty", float, "Penalty for each time a token was seen."),
    (("--dry-multiplier",), "dry_multiplier", float, "Strength of DRY, against repeated runs; 0 is off."),
    (("--dry-base",), "dry_base", float, "Growth of DRY with the length of a run."),
    (("--dry-allowed-length",), "dry_allowed_length", int, "Length of a run that DRY lets pass."),
    (("--dry-penalty-last-n",), "dry_penalty_last_n", int, "Tokens that DRY looks back on; -1 is all."),
    (("--dynatemp-range",), "dynatemp_range", float, "Temperature varies this much with entropy; 0 is off."),
    (("--dynatemp-exp",), "dynatemp_exponent", float, "Exponent of the dynamic temperature."),
    (("--mirostat",), "mirostat", int, "Mirostat 1 or 2; 0 is off."),
    (("--mirostat-lr",), "mirostat_eta", float, "Learning rate of mirostat."),
    (("--mirostat-ent",), "mirostat_tau", float, "Target entropy of mirostat."),
    (("--adaptive-target",), "adaptive_target", float, "Probability that adaptive-p aims at; -1 is off."),
    (("--adaptive-decay",), "adaptive_decay", float, "Memory of adaptive-p."),
)
_DEFAULTS = {field.name: field.default for field in fields(SamplingOptions)}


def _sampling_option(flags: Sequence[str], field: str, kind: Any, text: str) -> Decorator[Any]:
    """One option of `_SAMPLING`, which is None when it is not given."""
    return click.option(*flags, field, type=kind, metavar="N", help=f"{text}  [default: {_DEFAULTS[field]}]")


sampling_options = options(
    *(_sampling_option(*row) for row in _SAMPLING),
    click.option(
        "--dry-sequence-breaker",
        multiple=True,
        metavar="TEXT",
        help='Text that ends a run for DRY, "none" for no such text (can be repeated).',
    ),
    click.option("--samplers", metavar="NAMES", help="The samplers in their order, separated by ;"),
    click.option("--sampling-seq", "--sampler-seq", metavar="LETTERS", help="The samplers, as edskypmxt."),
    click.option("--ignore-eos", is_flag=True, help="Go on after an end-of-text token."),
    click.option(
        "--stop-loops/--no-stop-loops",
        default=None,
        help="End an answer in which a passage repeats again and again (on, unless --ignore-eos).",
    ),
    click.option(
        "-l",
        "--logit-bias",
        multiple=True,
        metavar="TOKEN+BIAS",
        help="Make a token id likelier (15043+1) or rarer (15043-1, 15043-inf); can be repeated.",
    ),
)


@dataclass(frozen=True)
class ModelChoice:
    """Which model, and how to load it; None leaves the choice to the engine."""

    model: str | None
    ctx_size: int | None = None
    threads: int | None = None
    batch_size: int | None = None
    ubatch_size: int | None = None
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    precision: str | None = None
    verbose: bool = False
    chat_template: str | None = None
    lora: tuple[str, ...] = ()
    expert_memory: int | None = None
    kv_overrides: Mapping[str, Any] | None = None
    pack_cache: PackFolder | None = None
    draft: str | None = None
    draft_model: str | None = None
    cache_disk: Path | None = None
    cache_disk_limit: int | None = None
    mmproj: Path | None = None

    @classmethod
    def take(cls, parameters: dict[str, Any]) -> ModelChoice:
        """Remove this class's fields from a command's parameters."""
        return cls(**{name: parameters.pop(name) for name in cls.__dataclass_fields__ if name in parameters})

    def check_name(self) -> None:
        """Raises StoreError for a model that does not exist, before anything is read or fetched."""
        from pyllamacpu.store.resolve import check_name

        check_name(self.model)

    def own_sampling(self, once: bool) -> dict[str, float]:
        """Defaults for chats that the model brings along: the starter model, and those created with some.

        A single answer (`once`) is its best guess, the same each time; a conversation has some variety.
        """
        from pyllamacpu.store.resolve import own_sampling

        own = own_sampling(self.model)
        if own and once and self.card is None:
            own["temperature"] = 0.0
            own.pop("top_p", None)  # has no effect then
        return own

    @property
    def card(self) -> ModelCard | None:
        """What belongs to the name of a model that was created here."""
        from pyllamacpu.store.resolve import own_card

        return own_card(self.model)

    def load(self) -> Llama:
        """Find (or fetch) the model and load it. Raises PyllamacpuError.

        When no context size is asked for and the model's own does not fit in memory, smaller ones are tried,
        and that is said.
        """
        from pyllamacpu import Llama
        from pyllamacpu.store import resolve_model
        from pyllamacpu.store.created import adapters_of

        path, arguments = str(resolve_model(self.model)), self.arguments()
        if card := self.card:
            if own := [str(file) for file in adapters_of(Path(path))]:
                arguments["lora_path"] = [*own, *arguments.get("lora_path", [])]
            chosen = template_arguments(self.chat_template or card.template or None)
            arguments |= {"n_ctx": self.ctx_size or card.n_ctx or 0, **chosen}
        for smaller in _SMALLER_CONTEXTS if self.ctx_size is None else ():
            try:
                return Llama(path, **arguments)
            except ContextError as error:
                say(f"warning: {error}; using {smaller} tokens (-c)")
                arguments["n_ctx"] = smaller
        return Llama(path, **arguments)

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `Llama`."""
        named: dict[str, Any] = {
            "n_threads": None if self.threads in (0, -1) else self.threads,
            "n_batch": self.batch_size,
            "n_ubatch": self.ubatch_size,
            "type_k": self.cache_type_k,
            "type_v": self.cache_type_v,
            "precision": self.precision,
            "draft_model": draft_source(self.draft, self.draft_model),
            "expert_memory": self.expert_memory,
            "kv_overrides": self.kv_overrides,
            "pack_cache": self.pack_cache,
            "cache_disk": self.cache_disk,
            "cache_disk_limit": self.cache_disk_limit,
            "mmproj": self.mmproj,
            **template_arguments(self.chat_template),
        }
        if self.lora:
            named["lora_path"] = list(adapter_files(self.lora))
        chosen = {name: value for name, value in named.items() if value is not None}
        return {"n_ctx": self.ctx_size or 0, "verbose": self.verbose, **chosen}


def template_arguments(given: str | None) -> dict[str, str]:
    """What --chat-template means to `Llama`: Jinja text, a file of it, or a named format."""
    if given is None:
        return {}
    if "{%" in given or "{{" in given:
        return {"chat_template": given}
    if Path(given).is_file():
        return {"chat_template": read_text(Path(given))}
    if "/" in given or given.endswith((".jinja", ".jinja2", ".j2")):
        raise OptionError(f"--chat-template {given}: no such file")
    return {"chat_format": given}


def take_sampling(parameters: dict[str, Any], own: Mapping[str, Any] | None = None) -> SamplingOptions:
    """Remove the sampling options from a command's parameters, and make the engine's options of them.

    `own` are the model's own defaults, which win over the engine's. Options without effect are said
    on stderr. Raises click.UsageError for a bad value.
    """
    names = [field for _, field, _, _ in _SAMPLING] + ["samplers", "sampling_seq"]
    values = {name: value for name in names if (value := parameters.pop(name)) is not None}
    breakers, biases = parameters.pop("dry_sequence_breaker"), parameters.pop("logit_bias")
    try:
        if breakers:
            values["dry_sequence_breakers"] = parse_breakers(breakers)
        options = SamplingOptions.from_mapping(
            {**(own or {}), **values, "logit_bias": [parse_bias(text) for text in biases]}
        )
    except OptionError as error:
        raise click.UsageError(str(error)) from error
    unchosen = unchosen_options(own, values)
    for warning in options.warnings():
        if warning.split()[0] not in unchosen:
            say(f"warning: {warning}")
    return options


def unchosen_options(own: Mapping[str, Any] | None, chosen: Mapping[str, Any]) -> frozenset[str]:
    """Options that the model brought along and the person did not name: nobody is warned about those."""
    return frozenset(name for name in own or {} if chosen.get(name) is None)


def parse_breakers(given: Sequence[str]) -> tuple[str, ...]:
    """The texts of --dry-sequence-breaker; "none" clears those before it, as in llama-cli."""
    last_none = max((place for place, text in enumerate(given) if text == "none"), default=-1)
    return tuple(unescape(text) for text in given[last_none + 1 :])


def parse_bias(text: str) -> tuple[int, float]:
    """A token id and its bias from `15043+1.5`, `15043-inf`."""
    match = _BIAS.match(text.replace(" ", ""))
    if not match:
        raise OptionError(
            f"--logit-bias {text}: write a token id, + or -, and the bias, as in 15043+1 or 15043-inf"
        )
    return int(match[1]), float(match[3]) * (-1 if match[2] == "-" else 1)


def unescape_bytes(text: bytes) -> bytes:
    r"""`text` with \n, \r, \t, \', \", \\ and \xHH replaced; other backslashes stay. \xHH is one byte."""
    return _ESCAPE.sub(
        lambda match: bytes([int(match[1], 16)]) if match[1] else _ESCAPED.get(match[2], match[0]), text
    )


def unescape(text: str) -> str:
    """`unescape_bytes` for text. Raises OptionError when the bytes are no UTF-8."""
    return decode(unescape_bytes(text.encode("utf-8", "surrogateescape")), "a text given as an option")


def option_files(*outputs: str) -> list[Path]:
    """Every file that an option of the running command names, but for the options `outputs`, which must not
    replace one. Also in `NAME=FILE:SCALE` and in lists with commas; models by their names in the store too.
    """
    found: list[Path] = []
    for name, value in click.get_current_context().params.items():
        values = value if isinstance(value, tuple) else (value,)
        texts = [str(one) for one in values if isinstance(one, (str, Path))]
        if name not in outputs:
            found += [path for text in texts for path in _named_files(text, name in _MODELS_BESIDE)]
    return found


_MODELS_BESIDE = ("draft_model", "guard")


def _named_files(text: str, is_model: bool) -> list[Path]:
    from pyllamacpu.store import model_files, resolve_model

    if is_model:
        return model_files(resolve_model(text))
    ways = {text, *text.split(",")}
    ways |= {way.partition("=")[2] for way in ways}
    ways |= {way.rpartition(":")[0] for way in ways}
    return [Path(way) for way in ways if way and len(way) < 4096 and os.path.isfile(way)]


def read_bytes(path: Path) -> bytes:
    """The content of a file, or of stdin for `-`. Raises OptionError."""
    if str(path) == "-":
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise OptionError(f"{path}: {read_problem(error)}") from error


def existing_file(_context: click.Context, _option: click.Parameter, path: Path | None) -> Path | None:
    """A click callback: the file that an option names must be there before the work. Raises OptionError."""
    if path is not None and not path.exists():
        raise OptionError(f"{path}: no such file")
    if path is not None and path.is_dir():
        raise OptionError(f"{path} is a folder; give a file")
    return path


def read_text(path: Path) -> str:
    """The text of a file, byte for byte (no newline is changed), or of stdin for `-`. Raises OptionError."""
    return decode(read_bytes(path), "stdin" if str(path) == "-" else str(path))


def decode(content: bytes, source: str) -> str:
    """`content` as UTF-8. Raises OptionError that says where it is none."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(
            f"{source} is not UTF-8: byte 0x{content[error.start]:02x} at {error.start}; convert it first"
        ) from error


def checked_argument(text: str, option: str) -> str:
    """Text from the command line, which can carry bytes that are no UTF-8; raises OptionError then."""
    return decode(text.encode("utf-8", "surrogateescape"), option)


def stop_texts(given: Sequence[str], escape: bool | None) -> tuple[str, ...]:
    """The texts of --reverse-prompt."""
    return tuple(unescape(text) if escape is not False else text for text in given if text)
