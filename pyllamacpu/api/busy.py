"""The lock of a `Llama` object's session."""

from __future__ import annotations

from pyllamacpu.errors import ModelError
from pyllamacpu.forks import fork_safe_lock


class Busy:
    """Guards the session; entering it when the model has been closed raises ModelError.

    Whoever holds it neither waits for a step nor runs one, unless steps are paused: processors and criteria,
    which a step calls, may want it themselves.
    """

    def __init__(self) -> None:
        self.lock = fork_safe_lock()
        self.closed = False

    def __enter__(self) -> None:
        self.lock.acquire()
        try:
            self.check()
        except BaseException:
            self.lock.release()
            raise

    def check(self) -> None:
        if self.closed:
            raise closed_error()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def closed_error() -> ModelError:
    return ModelError("this Llama has been closed; open the model again")
