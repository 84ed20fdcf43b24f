"""`--guard` and `--shield` of the commands that answer: serve, batch, chat and complete."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyllamacpu.cli.images import ImageFile
from pyllamacpu.cli.options import options
from pyllamacpu.cli.wrapping import say

if TYPE_CHECKING:
    from pyllamacpu.safety.shield import Shield, ShieldOptions
    from pyllamacpu.safety.shield_scanners import Finding

BLOCKED = 3  # the exit code of an answer that was blocked
_MAX_REASON = 400  # characters that are shown

shield_options = options(
    click.option(
        "--guard",
        metavar="MODEL",
        help="A Llama Guard model that judges prompts and answers: an unsafe one is not answered, or ends.",
    ),
    click.option(
        "--guard-category",
        multiple=True,
        metavar="KEY[: TEXT]",
        help="The guard judges by this category only; several times for several. With a text it is your own "
        'policy, "S15: Name. What it means".',
    ),
    click.option(
        "--guard-exclude",
        multiple=True,
        metavar="KEY",
        help="The guard leaves this category out; several times for several.",
    ),
    click.option(
        "--guard-threshold",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        help="Probability of the guard from which it is unsafe.  [default: 0.5]",
    ),
    click.option(
        "--shield",
        metavar="NAMES",
        help="Scan what users and tools say and what models answer, by these joined by commas: "
        "prompt-guard=MODEL, code-shield, hidden-ascii, regex, pii, guard=MODEL. What was found is told.",
    ),
)


def take_shield(parameters: dict[str, Any]) -> ShieldOptions | None:
    """What the two options ask for; they leave the parameters. Raises click.UsageError, StoreError."""
    guard, names = parameters.pop("guard"), parameters.pop("shield")
    policy = {name: parameters.pop(f"guard_{name}") for name in ("category", "exclude", "threshold")}
    if guard is None and names is None and not any(policy.values()):
        return None
    from pyllamacpu.safety.scanners.models import PROMPT_GUARD_VARIABLE
    from pyllamacpu.safety.shield import ShieldOptions
    from pyllamacpu.safety.shield_scanners import SCANNERS

    given = _once("--shield", (_named_model(text) for text in (names or "").split(",") if text.strip()))
    known = (*SCANNERS, "guard")
    if names is not None and not given:
        raise click.UsageError(f"--shield: name at least one of {', '.join(known)}")
    for name, model in given.items():
        if name not in known:
            raise click.UsageError(f"--shield {name}: there are {', '.join(known)}")
        if model and name not in ("guard", "prompt-guard"):
            raise click.UsageError(f"--shield {name}={model}: {name} takes no model")
    if guard and given.get("guard"):
        raise click.UsageError("--guard and --shield guard=MODEL: give one of them")
    guard = given.get("guard") if guard is None else guard
    prompt_guard = given.get("prompt-guard") or os.environ.get(PROMPT_GUARD_VARIABLE)
    for name, file in (("guard", guard), ("prompt-guard", prompt_guard)):
        if name in given and not file:
            raise click.UsageError(f"--shield {name}: name its model too, as {name}=MODEL")
    if guard is None and (without := next((name for name, value in policy.items() if value), None)):
        raise click.UsageError(f"--guard-{without}: name the guard model too, with --guard")
    scanners = tuple(name for name in given if name != "guard")
    if not scanners and guard is None:
        return None
    return ShieldOptions(
        scanners,
        _file(prompt_guard) if "prompt-guard" in given else None,
        None if guard is None else _file(guard),
        categories_of(policy["category"]),
        policy["exclude"],
        0.5 if policy["threshold"] is None else policy["threshold"],
    )


def categories_of(given: Sequence[str]) -> tuple[tuple[str, str], ...] | None:
    """KEY or KEY: TEXT each; None for the model's own."""
    pairs = ((key.strip(), words.strip()) for key, _, words in (text.partition(":") for text in given))
    return tuple(_once("category", pairs).items()) if given else None


def _once(what: str, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Raises click.UsageError for a name that is given twice, with different words."""
    found: dict[str, str] = {}
    for name, value in pairs:
        if found.setdefault(name, value) != value:
            raise click.UsageError(f"{what} {name} is given twice: {found[name]!r:.60} and {value!r:.60}")
    return found


def open_shield(parameters: dict[str, Any]) -> Shield | None:
    """The shield of a command that answers here, loaded; it is closed with the command. Raises what
    `take_shield` and loading raise.
    """
    if (given := take_shield(parameters)) is None:
        return None
    from pyllamacpu.safety.shield import Shield

    shield = Shield(given, _with_bytes)
    click.get_current_context().call_on_close(shield.close)
    shield.load()
    return shield


def say_not_scanned(shield: Shield | None, with_images: bool) -> None:
    """What the shield does not look at, of what may come; images only if there may be any."""
    for words in shield.not_scanned(with_images) if shield is not None else ():
        say(f"shield: not scanned: {words}")


def _with_bytes(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages with the bytes of their images' files, as a guard takes them."""
    return [
        {**message, "content": [_part(part) for part in content]}
        if isinstance(content := message["content"], list)
        else message
        for message in messages
    ]


def _part(part: Mapping[str, Any]) -> Mapping[str, Any]:
    image = part.get("image")
    return {**part, "image": image.data} if isinstance(image, ImageFile) else part


def blocked_text(findings: Sequence[Finding]) -> str:
    """Why a message or an answer is blocked, for a person."""
    what = "the message is not answered" if findings[0].what == "input" else "the answer ends here"
    reasons = (f"{one.scanner}: {' '.join(one.reason.split())}" for one in findings)
    joined = "; ".join(reasons)
    shortened = joined if len(joined) <= _MAX_REASON else f"{joined[:_MAX_REASON]}..."
    return f"blocked: {what} ({shortened})"


def _named_model(text: str) -> tuple[str, str]:
    name, _, model = text.strip().partition("=")
    return name, model


def _file(model: Any) -> str:
    from pyllamacpu.store import resolve_model

    return str(Path(resolve_model(model)).absolute())
