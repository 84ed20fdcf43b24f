"""The lock of a `Llama` object's session."""

from __future__ import annotations

from pyllamacpu.errors import ModelError
from pyllamacpu.forks import fork_safe_lock


class Busy:
    """`lock` guards the session. It has no `with` of its own: an interrupt may come when a method of Python
    begins, and would leave it locked.

    Whoever holds it neither waits for a step nor runs one, unless steps are paused: processors and criteria,
    which a step calls, may want it themselves.
    """

    def __init__(self) -> None:
        self.lock = fork_safe_lock()
        self.closed = False

    def check(self) -> None:
        """Raises ModelError when the model has been closed."""
        if self.closed:
            raise closed_error()


def closed_error() -> ModelError:
    return ModelError("this Llama has been closed; open the model again")
