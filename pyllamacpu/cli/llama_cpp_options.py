"""Lines made for llama.cpp's programs, as any command takes them: one pass over the arguments before click's.

An option that the command has goes through. Of the others, those that only decide where and how llama.cpp
computes are left out, and one note names them; some are written in our words; those that would change the
result are errors. Short options are whole words, as in llama.cpp: `-cnv` is never `-c nv`. A number may
follow its letter directly (`-c4096`).

Source: the READMEs of llama.cpp's tools: cli, completion, server, llama-bench, perplexity, imatrix, quantize.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import click

# One option a line: its names, then a word for each value it takes; [a|b] is a value that may be missing.
_IGNORED = """
-ngl --gpu-layers --n-gpu-layers N
-sm --split-mode MODE
-ts --tensor-split LIST
-mg --main-gpu N
-dev --device LIST
-ot --override-tensor LIST
-cmoe --cpu-moe
-ncmoe --n-cpu-moe N
-ncffn --n-cpu-ffn N
--moe-cache-mib N
-fit --fit [on|off]
-fitt --fit-target LIST
-fitc --fit-ctx N
-fa --flash-attn [on|off|auto|0|1|true|false]
-nfa --no-flash-attn
-kvo --kv-offload
-nkvo --no-kv-offload
--op-offload
--no-op-offload
--repack
-nr --no-repack
--no-host
--rpc LIST
-lm --load-mode MODE
-lzm --lazy-mode MODE
--mlock
--mmap
--no-mmap
-dio --direct-io
-ndio --no-direct-io
--warmup
--no-warmup
--check-tensors
-tb --threads-batch N
-C --cpu-mask M
-Cr --cpu-range RANGE
--cpu-strict N
--prio N
--poll N
-Cb --cpu-mask-batch M
-Crb --cpu-range-batch RANGE
--cpu-strict-batch N
--prio-batch N
--poll-batch N
-dt --defrag-thold N
--swa-full
-kvu --kv-unified
-no-kvu --no-kv-unified
-np --parallel N
-cb --cont-batching
-nocb --no-cont-batching
--cache-prompt
--no-cache-prompt
--cache-reuse N
-cram --cache-ram N
-ctxcp --ctx-checkpoints --swa-checkpoints N
--keep N
--context-shift
--no-context-shift
--jinja
-co --color [on|off|auto]
--no-color
-i --interactive
-if --interactive-first
-mli --multiline-input
-sp --special
--simple-io
--no-display-prompt
--display-prompt
--show-timings
--no-show-timings
--perf
--no-perf
--verbose-prompt
-ptc --print-token-count N
--log-disable
--log-file FILE
--log-colors [on|off|auto]
--log-prefix
--no-log-prefix
--log-timestamps
--no-log-timestamps
--log-jsonl
--no-log-jsonl
-lv --verbosity --log-verbosity N
--log-verbose
-v --verbose
-bs --backend-sampling
-a --alias NAME
--no-mmproj
--spec-type TYPE
-ctkd --cache-type-k-draft --spec-draft-type-k TYPE
-ctvd --cache-type-v-draft --spec-draft-type-v TYPE
-md --model-draft --spec-draft-model FILE
-Cd --cpu-mask-draft --spec-draft-cpu-mask M
-Crd --cpu-range-draft --spec-draft-cpu-range RANGE
-otd --override-tensor-draft --spec-draft-override-tensor LIST
-cmoed --cpu-moe-draft --spec-draft-cpu-moe
-ncmoed --n-cpu-moe-draft --spec-draft-n-cpu-moe N
-lcs --lookup-cache-static FILE
-lcd --lookup-cache-dynamic FILE
--spec-default
--spec-draft-prio --prio-draft N
--spec-draft-poll --poll-draft N
--spec-ngram-mod-n-min N
--spec-ngram-mod-n-max N
--spec-ngram-mod-n-match N
--spec-ngram-simple-size-n N
--spec-ngram-simple-size-m N
--spec-ngram-simple-min-hits N
--prompt-cache FILE
--prompt-cache-all
--prompt-cache-ro
--cache-idle-slots
--no-cache-idle-slots
-cms --checkpoint-min-step N
--kv-unified-per-slot N
--reasoning-format FORMAT
-rea --reasoning [on|off|auto]
--reasoning-budget N
--reasoning-budget-message TEXT
--reasoning-effort LEVEL
--reasoning-preserve
--no-reasoning-preserve
--skip-chat-parsing
--no-skip-chat-parsing
--mmproj-auto
--no-mmproj-auto
--mmproj-offload
--no-mmproj-offload
-mmdev --mmproj-device DEVICE
--image-min-tokens N
--image-max-tokens N
--log-prompts-dir FOLDER
--no-webui
-hfd -hfrd --hf-repo-draft --spec-draft-hf REPO
-ngld --gpu-layers-draft --n-gpu-layers-draft --spec-draft-ngl N
-devd --device-draft LIST
-td --threads-draft N
-tbd --threads-batch-draft N
-cd --ctx-size-draft N
--draft --draft-n --draft-max --spec-draft-n-max N
--draft-min --draft-n-min --spec-draft-n-min N
--draft-p-min --spec-draft-p-min N
--draft-p-split --spec-draft-p-split N
"""

# Where a program differs from the others; these lines come first.
_IGNORED_OF = {
    "bench": """
-fa --flash-attn LIST
-nkvo --no-kv-offload LIST
-nopo --no-op-offload LIST
--no-host LIST
--repack LIST
-mmp --mmap LIST
-dio --direct-io LIST
-embd --embeddings LIST
--moe-cache LIST
--n-gen-warmup N
""",
    "perplexity": "-s --seed N\n--ppl-output-type N\n--all-logits",
    "imatrix": "-s --seed N\n-ofreq --output-frequency N\n--verbosity N",
    "complete": "-st --single-turn",
    "serve": """
-b --batch-size N
-ub --ubatch-size N
--slots
--no-slots
--props
--embedding --embeddings
--webui
--no-webui
--threads-http N
--slot-save-path FOLDER
--sse-ping-interval N
--reuse-port
-to --timeout N
-sps --slot-prompt-similarity N
--sleep-idle-seconds N
""",
}
_IGNORED_OF["quantize"] = "--nthreads N\n--keep-bpw-state\n--bpw-state FILE"

_RENAMED = {
    "--chat-template-file": "--chat-template",
    "--lora-scaled": "--lora",
    "-mu": "--model",
    "--model-url": "--model",
}
_REPO, _HUB_FILE = ("-hf", "-hfr", "--hf-repo"), ("-hff", "--hf-file")
_ENVIRONMENT = {"-hft": "HF_TOKEN", "--hf-token": "HF_TOKEN"}
_OFFLINE = "--offline"

_REFUSED = {
    "--control-vector": "control vectors are not supported",
    "--control-vector-scaled": "control vectors are not supported",
    "-mm": "this command reads no images",
    "--mmproj": "this command reads no images",
    "-mmu": "name a file that is here: --mmproj FILE",
    "--mmproj-url": "name a file that is here: --mmproj FILE",
    "--image": "this command reads no images",
    "--audio": "sound is not supported",
    "--video": "videos are not supported",
    "--control-vector-layer-range": "control vectors are not supported",
    "--chat-template-kwargs": "variables of templates are not there yet",
    "-gan": "self-extend is not supported; take a model with a longer context",
    "--grp-attn-n": "self-extend is not supported; take a model with a longer context",
    "-dr": "models come from the hub: -hf user/repo:quant",
    "--docker-repo": "models come from the hub: -hf user/repo:quant",
    "--yarn-orig-ctx": "the file's own rope settings are used; --override-kv changes them, llama.rope.…",
    "--yarn-ext-factor": "the file's own rope settings are used; --override-kv changes them, llama.rope.…",
    "--yarn-attn-factor": "the file's own rope settings are used; --override-kv changes them, llama.rope.…",
    "--yarn-beta-slow": "the file's own rope settings are used; --override-kv changes them, llama.rope.…",
    "--yarn-beta-fast": "the file's own rope settings are used; --override-kv changes them, llama.rope.…",
    "--ssl-key-file": "put a proxy with TLS in front of the server",
    "--ssl-cert-file": "put a proxy with TLS in front of the server",
    "--in-prefix": "use a chat template (`chat --chat-template`) instead",
    "--in-suffix": "use a chat template (`chat --chat-template`) instead",
    "--rope-scaling": "the file's own rope settings are used; --override-kv changes them, llama.rope.…",
    "--rope-scale": "the file's own rope settings are used; --override-kv changes them, llama.rope.…",
    "--rope-freq-base": "give --override-kv llama.rope.freq_base=float:N",
    "--rope-freq-scale": "set it from Python (`rope_freq_scale`)",
    "--list-devices": "the one device is the CPU: see `pyllamacpu doctor`",
    "--pooling": "`Llama(pooling_type=…)` in Python has it",
    "--rerank": "reranking is not there yet",
    "--reranking": "reranking is not there yet",
    "--show-statistics": "statistics of an importance matrix are not there yet",
    "--no-importance": "leave --imatrix out instead",
    "--no-jinja": "prompts are always made by the file's template, or a format by name (--chat-template)",
}
_PROGRAMS = {
    "llama-cli": "chat",
    "run": "chat",  # ollama's
    "llama-completion": "complete",
    "llama-server": "serve",
    "llama-bench": "bench",
    "llama-batched-bench": "bench",
    "llama-quantize": "quantize",
    "llama-perplexity": "perplexity",
    "llama-imatrix": "imatrix",
    "llama-tokenize": "tokenize",
    "ls": "list",
    "models": "list",
    "download": "pull",
}
_OTHER_COMMAND = {
    "chat": (("-no-cnv", "--no-conversation"), "complete"),
    "complete": (("-cnv", "--conversation"), "chat"),
}
# Defaults of llama-server's requests, which are no options of our server.
_IN_REQUESTS = """
-n --predict --n-predict N
-s --seed N
--temp --temperature N
--top-k N
--top-p N
--min-p N
--repeat-penalty N
--repeat-last-n N
--presence-penalty N
--frequency-penalty N
--samplers LIST
--ignore-eos
-l --logit-bias BIAS
-r --reverse-prompt TEXT
"""
_IGNORED_OF["chat"] = "-cnv --conversation"
_IGNORED_OF["complete"] += "\n-no-cnv --no-conversation"

_ATTACHED_NUMBER = re.compile(r"-[A-Za-z]-?\d+(\.\d+)?\Z")


@dataclass(frozen=True)
class _Foreign:
    """An option of llama.cpp's: how many values follow, or which word may."""

    n_values: int = 0
    optional: frozenset[str] = frozenset()


def _table(text: str) -> dict[str, _Foreign]:
    found: dict[str, _Foreign] = {}
    for line in filter(None, text.splitlines()):
        names = [word for word in line.split() if word.startswith("-")]
        values = [word for word in line.split() if not word.startswith("-")]
        optional = frozenset("|".join(v[1:-1] for v in values if v.startswith("[")).split("|")) - {""}
        for name in names:
            found[name] = _Foreign(0 if optional else len(values), optional)
    return found


_EVERYWHERE = _table(_IGNORED)
_PER_COMMAND = {name: _table(text) for name, text in _IGNORED_OF.items()}
_PER_REQUEST = {"serve": _table(_IN_REQUESTS)}


@dataclass
class Translation:
    """A command's arguments in our words, and the options that were left out, as they were given."""

    args: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    in_requests: list[str] = field(default_factory=list)  # left out too: a request says them
    runs: str | None = None  # the command, when it is another than the one that was typed

    def note(self) -> str | None:
        """One sentence about what was left out."""
        parts = [f"this line is for `pyllamacpu {self.runs}`"] if self.runs and self.ignored else []
        if self.ignored:
            verb = "has no meaning here and is" if len(self.ignored) == 1 else "have no meaning here and are"
            parts.append(f"{', '.join(dict.fromkeys(self.ignored))} {verb} ignored")
        if self.in_requests:
            parts.append(f"{', '.join(self.in_requests)}: ignored, each request says that itself")
        return f"note: {'; '.join(parts)}" if parts else None


def command_for(name: str, args: Sequence[str]) -> str:
    """The command that a line means: llama-cli is `chat`, but with -no-cnv it is `complete`."""
    name = _PROGRAMS.get(name, name)
    options, other = _OTHER_COMMAND.get(name, ((), name))
    return other if any(arg in options for arg in args) else name


def translate(command: click.Command, name: str, args: Sequence[str], context: click.Context) -> Translation:
    """Arguments that `command` understands. Raises click.UsageError for an option that neither has, and for
    one that would change the result.
    """
    return _Translator(command, name, args, context).run()


def _is_option(word: str) -> bool:
    return word.startswith("-") and len(word) > 1


class _Translator:
    def __init__(
        self, command: click.Command, name: str, args: Sequence[str], context: click.Context
    ) -> None:
        self.context = context
        self.own: dict[str, click.Option] = {}
        for parameter in command.get_params(context):
            if isinstance(parameter, click.Option):
                self.own.update(dict.fromkeys([*parameter.opts, *parameter.secondary_opts], parameter))
        self.per_request = _PER_REQUEST.get(name, {})
        self.foreign = _EVERYWHERE | _PER_COMMAND.get(name, {}) | self.per_request
        self.rest = list(args)
        self.result = Translation()
        self.given: dict[str, str] = {}  # options of our own by their parameters' names, as they were spelled
        self.repo: str | None = None
        self.hub_file: str | None = None

    def run(self) -> Translation:
        while self.rest:
            arg = self.rest.pop(0)
            if arg == "--":
                self.result.args += self._model()
                self.result.args += [arg, *self.rest]
                return self.result
            if not arg.startswith("-") or arg == "-":
                self.result.args.append(arg)
            else:
                self._option(arg)
        self.result.args += self._model()
        return self.result

    def _model(self) -> Iterator[str]:
        """-hf and -hff as --model."""
        if self.hub_file is not None and self.repo is None:
            raise click.UsageError("-hff names a file of the repository in -hf: give both", ctx=self.context)
        if self.repo is not None:
            model = self.own["--model"]
            if (given := self.given.get(model.name or "")) and not model.multiple:
                raise click.UsageError(f"give one model: {given} or -hf {self.repo}", ctx=self.context)
            repo = self.repo if "://" in self.repo or self.repo.startswith("hf.co/") else f"hf.co/{self.repo}"
            yield from ("--model", f"{repo.partition(':')[0]}/{self.hub_file}" if self.hub_file else repo)

    def _option(self, arg: str) -> None:
        name, equals, value = arg.partition("=")
        if name not in self.own and "_" in name and (dashed := name.replace("_", "-")) in self._known():
            name = dashed
        if name in self.own:
            self._own(name, equals, value)
        elif _ATTACHED_NUMBER.match(arg) and arg[:2] in self.own and not self.own[arg[:2]].is_flag:
            self.result.args += [arg[:2], arg[2:]]
        else:
            self._not_own(arg, name, [value] if equals else [])

    def _known(self) -> set[str]:
        words = {*self.own, *self.foreign, *_RENAMED, *_REFUSED, *_ENVIRONMENT, *_REPO, *_HUB_FILE, _OFFLINE}
        return words if "--model" in self.own else words - {*_REPO, *_HUB_FILE}

    def _own(self, name: str, equals: str, value: str) -> None:
        option = self.own[name]
        n_values = 0 if option.is_flag or option.count else option.nargs
        self.given[option.name or name] = name
        if not equals and option._flag_needs_value and (not self.rest or _is_option(self.rest[0])):
            self.result.args.append(f"{name}={option.flag_value}")  # what follows may be left out
        elif not equals:
            self.result.args += [name, *self._values(n_values)]
        elif name.startswith("--") or not n_values:
            self.result.args.append(f"{name}={value}")
        else:
            self.result.args += [name, value]

    def _values(self, count: int) -> list[str]:
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken

    def _value(self, name: str, given: list[str]) -> str:
        values = given or self._values(1)
        if not values:
            raise click.BadOptionUsage(name, f"Option {name!r} requires an argument.", ctx=self.context)
        return values[0]

    def _not_own(self, arg: str, name: str, given: list[str]) -> None:
        if reason := _REFUSED.get(name):  # it would change the result
            raise click.UsageError(f"{name} is not supported: {reason}", ctx=self.context)
        if name in _REPO and "--model" in self.own:
            self.repo = self._value(name, given)
        elif name in _HUB_FILE and "--model" in self.own:
            self.hub_file = self._value(name, given)
        elif name in _ENVIRONMENT:
            os.environ[_ENVIRONMENT[name]] = self._value(name, given)
        elif name == _OFFLINE:
            os.environ["HF_HUB_OFFLINE"] = "1"
        elif _RENAMED.get(name) in self.own:
            self.given[self.own[_RENAMED[name]].name or name] = name
            self.result.args += [_RENAMED[name], self._value(name, given)]
        elif name in self.foreign:
            self._ignore(name, given)
        else:
            from difflib import get_close_matches

            near = get_close_matches(name, [*self.own, *self.foreign], 2, 0.75)
            near += [f"{arg[:2]} {arg[2:]}"] if arg[:2] in self.own and not arg.startswith("--") else []
            raise click.NoSuchOption(name, possibilities=near, ctx=self.context)

    def _ignore(self, name: str, given: list[str]) -> None:
        foreign = self.foreign[name]
        values = given or self._values(foreign.n_values)
        if not values and self.rest and self.rest[0].lower() in foreign.optional:
            values = self._values(1)
        left_out = self.result.in_requests if name in self.per_request else self.result.ignored
        left_out.append(" ".join([name, *values]))
