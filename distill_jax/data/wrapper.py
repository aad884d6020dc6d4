"""The base class of datasets that change the batches of another one."""

from typing import Any

from distill_jax.data.base import Checked, Source, Summary, check, has_images, summarise
from distill_jax.data.prompts import captions_of


class Wrapper:
    """A dataset with the images, captions and labels of another one, whose batches it changes.

    Attributes:
      source: the other dataset.
    """

    source: Any

    @property
    def num_labels(self) -> int:
        """The number of labels of the source."""
        found: int = self.source.num_labels
        return found

    @property
    def has_images(self) -> bool:
        """Whether the source has images."""
        return has_images(self.source)

    @property
    def summary(self) -> Summary:
        """The summary of the source."""
        return summarise(self.source)

    def check(self, part: tuple[int, int] = (0, 1)) -> Checked:
        """Opens the images of the source; see Dataset."""
        return check(self.source, part)

    def images(self, split: str, num: int | None = None) -> Source:
        """Returns images of the source; see Dataset."""
        found: Source = self.source.images(split, num)
        return found

    def captions(self, split: str, num: int | None = None) -> list[str]:
        """Returns captions of the source; see Dataset."""
        return captions_of(self.source, split, num)
