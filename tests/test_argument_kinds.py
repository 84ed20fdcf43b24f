"""Arguments of the Python API of wrong kinds: each is a typed error, or one of the few that are meant.

Every argument of every function below gets every value of WRONG, so that a new argument is checked as well.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deberta_models import converted, make_tokenizer, write_checkpoint
from PIL import Image
from tiny_model import write_model

from pyllamacpu import AsyncLlama, Llama
from pyllamacpu.api.caches import LlamaDiskCache, LlamaRAMCache
from pyllamacpu.errors import PyllamacpuError
from pyllamacpu.images.sources import open_picture, open_url
from pyllamacpu.safety import CodeShield, Guard, PromptGuard
from pyllamacpu.safety.firewall import Firewall
from pyllamacpu.safety.firewall_types import Role, ScanDecision, ScannerType, UserMessage

WRONG: dict[str, Any] = {
    "None": None,
    "-5": -5,
    "1.5": 1.5,
    "text": "x",
    "bytes": b"",
    "list": [],
    "dict": {},
    "nan": math.nan,
    "inf": math.inf,
    "folder": str(Path(__file__).parent),
    "null": "a\0b",
    "object": object(),
    "huge": 1 << 70,
}
TEXTS = "text folder null"
NUMBERS = "-5 1.5 inf huge"
NOTHING = "bytes list dict"  # as a list without items
HELLO = [{"role": "user", "content": "hi"}]
GUARD = (
    "{{ bos_token }}Is it unsafe?\n<BEGIN UNSAFE CONTENT CATEGORIES>\nS1: Crimes.\nS2: Theft.\n"
    "<END UNSAFE CONTENT CATEGORIES>\n{% for m in messages %}{{ m.content }}{% endfor %}\n"
    "First line 'safe' or 'unsafe'."
)

# What is meant, by the name of the argument (of one function: with its name before it).
MEANT = {
    "max_tokens": "-5 huge",
    "n_batch": "huge",
    "n_ubatch": "huge",
    "kv_bytes": "huge",
    "cache_disk": "text",
    "pack_cache": "text folder",
    "cache_dir": "text folder",
    "capacity_bytes": "1.5 inf huge",
    "lora_path": "list",
    "lora_scale": "-5 1.5",
    "rope_freq_base": "1.5",
    "rope_freq_scale": "1.5",
    "n_threads_batch": " ".join(WRONG),  # does nothing, with a warning
    "tfs_z": " ".join(WRONG),  # likewise
    "prompt": TEXTS,
    "suffix": TEXTS,
    "functions": "list",
    "tools": "list",
    "stop": f"{TEXTS} list",
    "frequency_penalty": "-5 1.5 huge",
    "presence_penalty": "-5 1.5 huge",
    "repeat_penalty": "1.5 huge",
    "mirostat_tau": "1.5 huge",
    "mirostat_eta": "1.5 huge",
    "top_k": "-5",
    "temp": "-5 1.5 huge",
    "temperature": "-5 1.5 huge",
    "model": " ".join(WRONG),  # what an answer calls it
    "logits_processor": NOTHING,
    "logits_processors": NOTHING,
    "stopping_criteria": NOTHING,
    "logit_bias": NOTHING,
    "prev_tokens": " ".join(WRONG),  # does nothing
    "ahead": "-5 huge",
    "logprobs": "-5 huge",
    "top_logprobs": "-5 huge",
    "text": f"{TEXTS} bytes",
    "texts": "list",
    "input": f"{TEXTS} list",
    "axis": "-5",
    "cache": "dict",
    "kv_overrides": "dict",
    "scales": "dict",
    "files": NOTHING,
    "images": "list bytes",
    "code": TEXTS,
    "conversation": TEXTS,
    "exclude": "list",
    "semgrep": TEXTS,
    "where": " ".join(WRONG),
    "fetch": " ".join(WRONG),
    "scanners": "dict",
    "patterns": "dict",
    "prompt_guard": TEXTS,
    "alignment": TEXTS,
    "pii": " ".join(WRONG),  # read when such a scanner is made
}


# Where None is meant as well, beside the arguments whose default it is.
NONE_TOO = frozenset(
    [
        "seed",
        "rope_freq_base",
        "rope_freq_scale",
        "lora_scale",
        "stop",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "temp",
        "temperature",
        "repeat_penalty",
        "frequency_penalty",
        "presence_penalty",
        "mirostat_mode",
        "mirostat_tau",
        "mirostat_eta",
        "max_tokens",
        "exclude",
        "images",
        "files",
        "logits_processors",
        "stopping_criteria",
        "ahead",
        "cache",
        "axis",
    ]
)


def check(function: Callable[..., Any], base: dict[str, Any], **meant: str) -> None:
    """Every argument but flags. `meant`: what this function takes of an argument, instead of MEANT."""
    for name, parameter in inspect.signature(function).parameters.items():
        if isinstance(parameter.default, bool) or parameter.kind is parameter.VAR_KEYWORD:
            continue
        accepted = set(meant.get(name, MEANT.get(name, "")).split())
        accepted |= {"None"} if parameter.default is None or name in NONE_TOO else set()
        for kind in WRONG.keys() - accepted:
            said = f"{function.__qualname__}({name}={WRONG[kind]!r:.20})"
            try:
                result = function(**{**base, name: WRONG[kind]})
                if inspect.isgenerator(result):
                    next(result)
            except PyllamacpuError:
                continue
            except Exception as error:
                pytest.fail(f"{said}: {error!r}")
            pytest.fail(f"{said} was accepted")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("kinds") / "tiny.gguf")


@pytest.fixture(scope="module")
def llm(tiny: Path) -> Iterator[Llama]:
    with Llama(tiny, n_ctx=64, n_threads=1) as llm:
        yield llm


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYLLAMACPU_HOME", str(tmp_path))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of options that do nothing
def test_opening(tiny: Path) -> None:
    check(Llama, {"model_path": tiny, "n_ctx": 64, "n_threads": 1}, draft_model="", stop="")
    check(AsyncLlama, {})


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("create_completion", {"prompt": "hi", "max_tokens": 1}),
        ("create_chat_completion", {"messages": HELLO, "max_tokens": 1}),
        ("create_embedding", {"input": "hi"}),
        ("embed", {"input": "hi"}),
        ("detokenize", {"tokens": [3]}),
        ("tokenize", {"text": b"hi"}),
        ("eval", {"tokens": []}),
        ("generate", {"tokens": [3, 4]}),
        ("logits", {"tokens": [3, 4]}),
        ("stream", {"prompt_tokens": [3, 4], "max_tokens": 1}),
        ("set_adapters", {"scales": {}}),
        ("load_adapters", {"files": []}),
        ("set_cache", {"cache": None}),
        ("set_seed", {"seed": 1}),
        ("load_state", {}),
        ("image_features", {}),
        ("logits_to_logprobs", {"logits": [1.0, 2.0]}),
        ("longest_token_prefix", {"a": [1], "b": [1]}),
    ],
)
def test_calls(llm: Llama, name: str, base: dict[str, Any]) -> None:
    own = {
        "detokenize": {"tokens": "list dict"},
        "eval": {"tokens": "list dict"},
        "logits_to_logprobs": {"logits": f"None {NUMBERS} nan"},
        "longest_token_prefix": {"a": f"{TEXTS} {NOTHING}", "b": f"{TEXTS} {NOTHING}"},
        "create_chat_completion": {"logprobs": " ".join(WRONG)},  # a flag
        "stream": {"end_tokens": "list dict"},
    }
    llm.reset()
    check(getattr(llm, name), base, **own.get(name, {}))
    llm.set_cache(None)


def test_caches_and_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "image.png")
    check(LlamaDiskCache, {"cache_dir": "kept"})
    check(LlamaRAMCache, {})
    check(open_picture, {"source": tmp_path / "image.png"})
    check(open_url, {"url": "data:,"})


def test_guard(tiny: Path) -> None:
    with Guard(str(tiny), n_ctx=256, n_threads=1, chat_template=GUARD) as guard:
        options = {"model": guard.llm}
        check(Guard, options, model="")
        check(guard.check, {"conversation": "hi"})
        check(guard.prompt, {}, messages="list")


def test_prompt_guard(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    make_tokenizer().save(str(checkpoint / "tokenizer.json"))
    path = converted(checkpoint, tmp_path / "model.gguf")
    check(PromptGuard, {"model": path, "n_threads": 1}, model="")
    with PromptGuard(path, n_threads=1) as guard:
        for name in ("check", "check_all", "score", "scores", "tokens", "logits"):
            check(getattr(guard, name), {})
        check(guard.windows, {}, ids="list dict")


def test_code_shield_and_firewall() -> None:
    check(CodeShield, {})
    check(CodeShield().scan, {"code": "x = 1"})
    nobody = {Role.USER: []}
    check(Firewall, {"scanners": nobody})
    check(Firewall.from_usecase, {})
    firewall = Firewall({Role.USER: [ScannerType.REGEX]})
    check(firewall.scan_replay, {}, trace="list")
    check(
        firewall.scan_replay_build_trace,
        {"message": UserMessage("x")},
        stored_trace="list",
        message=" ".join(WRONG),
    )
    for value in WRONG.values():  # what cannot be judged is blocked
        assert firewall.scan(value).decision is ScanDecision.BLOCK
        trace_is_wrong = value is not None and value != []
        assert (firewall.scan(UserMessage("x"), value).decision is ScanDecision.BLOCK) == trace_is_wrong
    with pytest.raises(PyllamacpuError, match="block_threshold"):
        type(firewall._makers[ScannerType.HIDDEN_ASCII]())(block_threshold=math.nan)
