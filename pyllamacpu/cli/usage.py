"""What answers of a chat cost: tokens and seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Stats(Protocol):
    """What the engine reports at the end of an answer."""

    @property
    def n_prompt(self) -> int: ...

    @property
    def n_cached(self) -> int: ...

    @property
    def n_generated(self) -> int: ...

    @property
    def prompt_seconds(self) -> float: ...

    @property
    def generate_seconds(self) -> float: ...

    @property
    def n_drafted(self) -> int: ...

    @property
    def n_accepted(self) -> int: ...

    @property
    def n_image(self) -> int: ...

    @property
    def image_seconds(self) -> float: ...


def context_full(n_ctx: int) -> str:
    """What is said of an answer that ends because nothing more fits."""
    return f"the context of {n_ctx} tokens is full; the answer ends here"


@dataclass(frozen=True)
class Usage:
    """Tokens and seconds of one answer, or of several added up."""

    n_prompt: int = 0
    n_cached: int = 0  # of n_prompt, taken from the cache
    n_generated: int = 0
    prompt_seconds: float = 0.0
    generate_seconds: float = 0.0
    n_drafted: int = 0  # tokens that were guessed and verified
    n_accepted: int = 0  # of those, tokens that came true
    n_image: int = 0  # of n_prompt, that stand for images
    image_seconds: float = 0.0  # of the vision tower

    def __add__(self, other: Stats | Usage) -> Usage:
        return Usage(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens computed per second."""
        return (self.n_prompt - self.n_cached) / self.prompt_seconds if self.prompt_seconds > 0 else 0.0

    @property
    def generate_rate(self) -> float:
        """Tokens generated per second."""
        return self.n_generated / self.generate_seconds if self.generate_seconds > 0 else 0.0
