"""The plans of one model that a step chooses from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyllamacpu.graph.adapters import GraphAdapters, check_all_changed
from pyllamacpu.graph.compiled import CompiledPlan
from pyllamacpu.graph.native_plan import NativePlan
from pyllamacpu.graph.passes import InputSquares
from pyllamacpu.graph.recorder import Recorder
from pyllamacpu.model.registry import Model

MAX_IMAGE_POSITIONS = 1 << 22  # of the images that one token sees


@dataclass(frozen=True)
class StepPlans:
    """whole: every layer. Of models with layers that attend to images also, without_images: the other layers,
    for steps in which nobody sees an image, and image: keys and values of an image's states.
    """

    whole: NativePlan
    without_images: NativePlan | None = None
    image: NativePlan | None = None

    @property
    def _all(self) -> tuple[NativePlan, ...]:
        return tuple(plan for plan in (self.whole, self.without_images, self.image) if plan is not None)

    @property
    def n_bytes(self) -> int:
        return sum(plan.n_bytes for plan in self._all)

    def of_step(self, sees_images: bool) -> NativePlan:
        return self.whole if sees_images or self.without_images is None else self.without_images

    def release(self) -> None:
        """Frees them; they can be neither run nor shown after it."""
        for plan in self._all:
            plan.release()
            plan.plan.release()


def recorded(
    model: Model,
    sums: InputSquares | None = None,
    adapters: GraphAdapters | None = None,
    record: Callable[[Recorder], None] | None = None,
) -> CompiledPlan:
    """The plan of a model's layers, or of what `record` notes."""
    recorder = Recorder(model.kv_spaces)
    (record or model.record)(recorder)
    return recorder.compile(sums, adapters)


def step_plans(
    model: Model,
    pool: Any,
    spaces: tuple[Any, ...],
    n_batch: int,
    n_ctx: int,
    sums: InputSquares | None = None,
    adapters: GraphAdapters | None = None,
    exact: bool = False,
) -> StepPlans:
    """spaces: the shapes of the KV spaces' pages. With `sums` every step runs every layer. exact: see
    NativePlan. Raises NativeError when adapters change a weight that is in none of the plans.
    """
    whole, text, image = recorded(model, sums, adapters), None, None
    if model.record_image is not None and model.record_without_images is not None:
        image = recorded(model, None, adapters, model.record_image)
        if sums is None:
            text = recorded(model, None, adapters, model.record_without_images)
    if adapters is not None:
        check_all_changed((plan.ops for plan in (whole, text, image) if plan is not None), adapters)

    def native(plan: CompiledPlan | None, n_most: int) -> NativePlan | None:
        return None if plan is None else NativePlan(plan, pool, spaces, n_batch, n_most, exact)

    of_steps = NativePlan(whole, pool, spaces, n_batch, n_ctx, exact)
    return StepPlans(of_steps, native(text, n_ctx), native(image, MAX_IMAGE_POSITIONS))
