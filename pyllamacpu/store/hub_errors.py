"""Errors of the hub's client, as errors of ours that say what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pyllamacpu.errors import PyllamacpuError, StoreError
from pyllamacpu.store.network import without_secrets
from pyllamacpu.store.paths import hub_cache_dir

_DISK = frozenset({
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOSPC,
    errno.ENOTDIR, errno.EPERM, errno.EROFS,
})  # fmt: skip
_TOKEN = "set HF_TOKEN to an access token that may read it"
_REFUSED = {
    401: f"the hub wants to know who asks; {_TOKEN}",
    403: f"the hub does not give it to whoever asks; {_TOKEN}",
    404: "no such file or revision in the repository",
}


class NoConnection(StoreError):
    """The hub could not be asked, so what it would have answered is not known."""


@contextmanager
def typed_errors(name: str, repo: str) -> Iterator[None]:
    """Makes StoreErrors that begin with `name` of the errors that the hub's client raises in the block."""
    from huggingface_hub import errors

    try:
        yield
    except PyllamacpuError:
        raise
    except errors.GatedRepoError as error:
        raise StoreError(
            f"{name}: access is restricted; accept the terms at https://huggingface.co/{repo} "
            "and set HF_TOKEN to your access token"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise StoreError(f"{name}: no such repository (or a private one: set HF_TOKEN)") from error
    except (errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as error:
        raise StoreError(f"{name}: no such file or revision in the repository") from error
    except Exception as error:  # the HTTP library differs between versions, and so do its errors
        raise _other_error(name, error) from error


def _other_error(name: str, error: Exception) -> StoreError:
    """By what the server answered, or what the disk did; else there is no connection."""
    if isinstance(error, OSError) and error.errno in _DISK:
        where = error.filename or hub_cache_dir()
        reason = os.strerror(error.errno)
        return StoreError(f"{name}: cannot write {where}: {reason}; set HF_HOME to a folder with space")
    status, reason = _status(error), _first_line(error)
    if status in _REFUSED:
        return StoreError(f"{name}: {_REFUSED[status]}")
    if status == 429:
        return NoConnection(
            f"{name}: the hub takes no more requests for now ({reason}); wait, or set HF_TOKEN"
        )
    if status >= 500:
        return NoConnection(f"{name}: the hub is out of order ({reason}); try again later")
    return NoConnection(f"{name}: cannot download ({reason}); check the network")


def _status(error: BaseException | None) -> int:
    """What the server answered, when an error or one that it comes from says so; else 0."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        seen.append(error)
        error = error.__cause__ or error.__context__
    return 0


def _first_line(error: Exception) -> str:
    lines = without_secrets(str(error).strip()).splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
