"""The calls of the `Llama` class that are about images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyllamacpu.engine.session import Logits

if TYPE_CHECKING:
    from pyllamacpu.api.loading import LoadedModel
    from pyllamacpu.api.vision import Vision
    from pyllamacpu.engine.engine import Engine


class ImageCalls:
    """Images of a model that is opened."""

    _parts: LoadedModel

    @property
    def engine(self) -> Engine:
        raise NotImplementedError

    @property
    def vision(self) -> Vision:
        """The model's images. Raises OptionError when it has no vision tower."""
        if self._parts.vision is None:
            from pyllamacpu.api.vision import missing_tower

            raise missing_tower(self.engine.file.paths[0], self.engine.config.arch)
        return self._parts.vision

    def image_features(self, image: Any) -> Logits:
        """What the vision tower makes of an image (in any form that `logits` takes): (n_rows, n_embd) float32
        that take the places of its tokens. Raises ImageError, OptionError.
        """
        rows: Logits = self.vision.embed(image).rows.copy()
        return rows
