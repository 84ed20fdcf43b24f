"""What a person is told once, at the first chat with the starter model: that a better one is a name away."""

from __future__ import annotations

import contextlib
import threading

from pyllamacpu.store.catalogue import find
from pyllamacpu.store.hub import hub_endpoint
from pyllamacpu.store.network import reachable
from pyllamacpu.store.paths import store_home

BETTER_MODEL, _SIZE = "llama3.2:1b", "0.8 GB"


class BetterModelOffer:
    """Looks for the hub while the model is loaded, and never waits: what is not known in time is not said."""

    def __init__(self) -> None:
        self._mark = store_home() / "better-model-offered"
        self._found = threading.Event()
        if not self._mark.exists():
            threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        if reachable(hub_endpoint()):
            self._found.set()

    def text(self) -> str | None:
        """The offer, the first time that the hub can be reached; None otherwise."""
        if not self._found.is_set():
            return None
        with contextlib.suppress(OSError):
            self._mark.parent.mkdir(parents=True, exist_ok=True)
            self._mark.touch()
        entry = find(BETTER_MODEL)
        assert entry is not None
        return (
            f"This model is tiny. A better one ({_SIZE} from {entry.repo}): "
            f"/bye, then `pyllamacpu chat -m {BETTER_MODEL}`"
        )
