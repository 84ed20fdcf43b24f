"""The commands of a chat, such as /undo and /set: what they do to the conversation, and what they say."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pyllamacpu.cli.adapter_options import lora_command
from pyllamacpu.cli.images import n_tokens, unshown_file
from pyllamacpu.cli.options import parse_bias, parse_breakers, unescape
from pyllamacpu.cli.session import ChatSession, Event, OnPrompt
from pyllamacpu.errors import OptionError
from pyllamacpu.sampling.options import OPTION_ALIASES, samplers_from_letters
from pyllamacpu.store.paths import expanded

HELP = """\
/help              this list (/? too)
/clear             forget the conversation (the system prompt stays)
/regen             answer the last message again
/continue          go on with an answer that was stopped or cut
/undo              forget the last message and its answer
/set               the settings; /set temp 0.5 changes one
/system [TEXT]     show or change the system prompt; /system none removes it
/image FILE        show an image with the next message (or drop it on the line)
/lora              the adapters; /lora 0 0.5 sets a scale, /lora FILE loads one
/save FILE         write the conversation as JSON (--force FILE: over any file)
/load FILE         go on with a saved conversation
/stats             tokens, speed and how full the context is
/bye               leave (/exit, /quit and Ctrl-D too)
\"""                begin and end a message of several lines
Enter              send the message
Alt-Enter          a new line in it (Esc, then Enter, too)
Tab                complete commands, settings and file names
Up, Down           earlier messages; Ctrl-R searches them
Ctrl-A, Ctrl-E     to the beginning, to the end of the line
Ctrl-W, Ctrl-U     delete the word, the line before the cursor
Ctrl-L             clear the screen
Ctrl-C             stop the answer; empty the line; twice: leave"""

FILE_COMMANDS = ("/save", "/load", "/lora", "/image")
"""Commands that are followed by a file's name."""

OWN_SETTINGS = ("n_predict", "stop_loops", "show_timings")
"""Settings of the chat itself, beside those of the sampler."""

_SWITCHES = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}

_LENGTH_NAMES = ("n_predict", "predict", "num_predict", "max_tokens")
_AFTER_LOADING = {
    "ctx_size",
    "num_ctx",
    "n_ctx",
    "threads",
    "num_thread",
    "batch_size",
    "ubatch_size",
    "model",
}


@dataclass(frozen=True)
class Reply:
    """What a command says; the answer that it starts, if any; and whether the chat ends."""

    text: str = ""
    answer: Iterator[Event] | None = None
    leave: bool = False


Handler = Callable[[ChatSession, str, OnPrompt | None], Reply]


def is_command(line: str) -> bool:
    """True for a line that begins with a slash; a leading space sends it as a message."""
    return line.startswith("/")


def is_known_command(line: str) -> bool:
    """Whether a line names a command, and is not the path of a dropped file: what is behind it is its own."""
    return line.split(" ", 1)[0].lower() in _HANDLERS


def run_command(session: ChatSession, line: str, on_prompt: OnPrompt | None = None) -> Reply:
    """Carry out one command line. Raises OptionError with a hint for an unknown command or a bad value."""
    name, _, rest = line.strip().partition(" ")
    handler = _HANDLERS.get(name.lower())
    if handler is None and "/" in name[1:] and (why := unshown_file(line)):
        raise OptionError(f"{why} (a space in front sends the line as a message)")
    if handler is None:
        near = difflib.get_close_matches(name.lower(), [known for known in _HANDLERS if len(known) > 2], 1)
        hint = f"did you mean {near[0]}?" if near else "/help lists the commands"
        raise OptionError(f"unknown command {name}; {hint} (a space in front sends it as a message)")
    if handler in _ALONE and rest.strip():
        raise OptionError(
            f"{name.lower()} stands alone, without {rest.strip()!r:.60} (a space in front sends the line "
            "as a message)"
        )
    return handler(session, rest.strip(), on_prompt)


def _help(_session: ChatSession, _rest: str, _on_prompt: OnPrompt | None) -> Reply:
    return Reply(HELP)


def _clear(session: ChatSession, _rest: str, _on_prompt: OnPrompt | None) -> Reply:
    session.clear()
    return Reply("the conversation is forgotten")


def _regen(session: ChatSession, _rest: str, on_prompt: OnPrompt | None) -> Reply:
    if not session.turns:
        raise OptionError("there is no answer yet to generate again")
    return Reply(answer=session.regenerate(on_prompt))


def _continue(session: ChatSession, _rest: str, on_prompt: OnPrompt | None) -> Reply:
    session.check_resumable()
    return Reply(answer=session.resume(on_prompt))


def _undo(session: ChatSession, _rest: str, _on_prompt: OnPrompt | None) -> Reply:
    first_line = session.undo().user.strip().split("\n")[0]
    return Reply(f"forgotten: {first_line[:60]}{'...' if len(first_line) > 60 else ''}")


def _system(session: ChatSession, rest: str, _on_prompt: OnPrompt | None) -> Reply:
    if not rest:
        default = None if session.system else session.engine.default_system()
        own = (
            f"the chat template's own, as none is set: {default}" if default else "there is no system prompt"
        )
        return Reply(session.system or own)
    text = _unquoted(rest)
    session.system = None if text.lower() == "none" else text or None
    return Reply("the system prompt is set" if session.system else "the system prompt is removed")


def _save(session: ChatSession, rest: str, _on_prompt: OnPrompt | None) -> Reply:
    name = re.sub(r"^--force(?:\s+|$)|\s+--force$", "", rest)
    path = _path(name, "/save")
    session.save(path, force=name != rest)
    return Reply(f"saved {_turns(session)} to {path}")


def _load(session: ChatSession, rest: str, _on_prompt: OnPrompt | None) -> Reply:
    path = _path(rest, "/load")
    session.load(path)
    return Reply(f"loaded {_turns(session)} from {path}{_open_end(session)}")


def _open_end(session: ChatSession) -> str:
    """What a loaded conversation lacks at its end, and the command that adds it."""
    if not session.turns or session.turns[-1].ended:
        return ""
    if session.turns[-1].is_unanswered:
        return "; its last message has no answer yet: /regen answers it"
    hint = "/continue goes on" if session.is_resumable else "/regen answers again"
    return f"; its last answer is not finished: {hint}"


def _lora(session: ChatSession, rest: str, _on_prompt: OnPrompt | None) -> Reply:
    said = lora_command(session.engine, rest)
    session.inputs = (*session.inputs, *(adapter.path for adapter, _ in session.engine.adapters))
    return Reply(said)


def _image(session: ChatSession, rest: str, _on_prompt: OnPrompt | None) -> Reply:
    if not rest:
        names = ", ".join(image.name for image in session.images)
        return Reply(f"with the next message: {names or 'no image'}")
    if rest.lower() == "none":
        session.images.clear()
        return Reply("no image goes with the next message")
    word = _word(rest, "/image")
    return Reply(session.attach(word if "://" in word else expanded(word)))


def _turns(session: ChatSession) -> str:
    return "1 turn" if len(session.turns) == 1 else f"{len(session.turns)} turns"


def _stats(session: ChatSession, _rest: str, _on_prompt: OnPrompt | None) -> Reply:
    last, total = session.last, session.total
    dropped = f" ({session.n_dropped} no longer in the prompt)" if session.n_dropped else ""
    return Reply(
        f"turns      {len(session.turns)}{dropped}\n"
        f"context    {session.context_used()} of {session.engine.n_ctx()} tokens\n"
        f"last       {usage_text(last)}\n"
        f"in all     {usage_text(total)}"
    )


def usage_text(usage: Any) -> str:
    """One line: tokens read and generated, with their rates in tokens per second."""
    cached = f" ({usage.n_cached} cached)" if usage.n_cached else ""
    drafts = f"; {usage.n_accepted} of {usage.n_drafted} drafted came true" if usage.n_drafted else ""
    images = f"images {n_tokens(usage.n_image)}, {usage.image_seconds:.1f} s; " if usage.n_image else ""
    return (
        f"{images}prompt {usage.n_prompt} tokens{cached}, {usage.prompt_rate:.1f} tokens/s; "
        f"answer {usage.n_generated} tokens, {usage.generate_rate:.1f} tokens/s{drafts}"
    )


def _bye(_session: ChatSession, _rest: str, _on_prompt: OnPrompt | None) -> Reply:
    return Reply(leave=True)


def _set(session: ChatSession, rest: str, on_prompt: OnPrompt | None) -> Reply:
    name, _, value = rest.partition(" ")
    if name == "parameter":  # ollama's way of saying it
        name, _, value = value.strip().partition(" ")
    if not name:
        return Reply(_settings(session))
    if name == "system":
        return _system(session, value.strip(), on_prompt)
    if not value.strip():
        raise OptionError(f"/set {name} needs a value, as in /set temp 0.5")
    return Reply(set_value(session, name, value.strip()))


def set_value(session: ChatSession, name: str, value: str) -> str:
    """Change one setting by any of its names; what was set, and what has no effect. Raises OptionError."""
    key = name.lower().lstrip("-").replace("-", "_")
    if key in _LENGTH_NAMES:
        session.max_tokens = _length(name, value)
        return f"{name} = {value}"
    if key in OWN_SETTINGS:
        return _switch(session, key, value)
    if key in _AFTER_LOADING:
        raise OptionError(f"{name} cannot change while the model is loaded: start again with that option")
    field = OPTION_ALIASES.get(key, key)
    known = [other.name for other in fields(session.options)]
    if field not in known:
        near = difflib.get_close_matches(key, [*known, *OPTION_ALIASES, *_LENGTH_NAMES, *OWN_SETTINGS], 1)
        hint = f"did you mean {near[0]}?" if near else "/set lists them"
        raise OptionError(f"there is no setting {name}; {hint}")
    session.options = replace(session.options, **{field: _setting(key, value)})
    session.unchosen -= {field}
    said = f"{field} = {getattr(session.options, field)}"
    about = [text for text in session.options.warnings() if field in text]
    return "\n".join([said, *(text for text in about if text.split()[0] not in session.unchosen)])


def _switch(session: ChatSession, key: str, value: str) -> str:
    """Set something that is on or off."""
    if value.lower() not in _SWITCHES:
        raise OptionError(f"{key} is on or off, not {value}")
    on = _SWITCHES[value.lower()]
    if key == "stop_loops":
        session.engine.stop_loops = on
    else:
        session.show_timings = on
    return f"{key} = {'on' if on else 'off'}"


def _length(name: str, value: str) -> int | None:
    """The number of tokens that an answer may have; None for a negative number."""
    try:
        number = int(value)
    except ValueError:
        raise OptionError(f"{name} is a whole number, not {value}") from None
    return number if number >= 0 else None


def _setting(key: str, value: str) -> Any:
    """The value of a setting that is not a plain number; numbers are checked by SamplingOptions itself."""
    if key in ("sampling_seq", "sampler_seq"):
        return samplers_from_letters(value)
    if key == "logit_bias":
        return [parse_bias(text) for text in value.split() if text != "none"]
    if key in ("dry_sequence_breakers", "dry_sequence_breaker"):
        return parse_breakers(_words(value))
    return value


def _words(value: str) -> list[str]:
    """The words of a value, as a shell reads them. Raises OptionError for a quote that is not closed."""
    try:
        return shlex.split(value)
    except ValueError as error:
        reason = str(error)[:1].lower() + str(error)[1:]
        raise OptionError(f"{value}: {reason}; write a quote as '\"', a backslash as '\\'") from error


def _settings(session: ChatSession) -> str:
    """All settings, one a line."""
    rows: dict[str, Any] = {"n_predict": -1 if session.max_tokens is None else session.max_tokens}
    rows |= {"stop_loops": session.engine.stop_loops, "show_timings": session.show_timings}
    rows |= {field.name: getattr(session.options, field.name) for field in fields(session.options)}
    return "\n".join(f"{name:<22} {value!r}" for name, value in rows.items())


def _unquoted(text: str) -> str:
    """`text` without the quotes around it, and with its escapes read."""
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    return unescape(text)


def _path(rest: str, command: str) -> Path:
    """The file that a command names."""
    return expanded(_word(rest, command))


def _word(rest: str, command: str) -> str:
    """What stands behind a command that names a file, which may be quoted. Raises OptionError for nothing."""
    if not rest:
        raise OptionError(f"{command} needs a file, as in {command} talk.json")
    try:
        words = shlex.split(rest)
    except ValueError:
        words = []
    return words[0] if len(words) == 1 else rest


_HANDLERS: dict[str, Handler] = {
    "/help": _help,
    "/?": _help,
    "/clear": _clear,
    "/regen": _regen,
    "/continue": _continue,
    "/undo": _undo,
    "/set": _set,
    "/system": _system,
    "/save": _save,
    "/load": _load,
    "/lora": _lora,
    "/image": _image,
    "/stats": _stats,
    "/bye": _bye,
    "/exit": _bye,
    "/quit": _bye,
}
_ALONE = (_clear, _regen, _continue, _undo, _stats, _bye)
COMMAND_NAMES = tuple(_HANDLERS)
