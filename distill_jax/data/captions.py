"""Captions of the pictures in a folder, and the dataset of pictures with captions."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from distill_jax.data.base import Rows, Source, Summary
from distill_jax.data.images import Decoded, ImageDataset
from distill_jax.data.listing import MAX_TABLE, Listing
from distill_jax.data.prompts import Prompts, as_array
from distill_jax.diffusion.spec import DataSpec, caption_data

TABLE = "metadata.jsonl"
MAX_TEXT = 2**16  # Bytes of a .txt file.
Texts = tuple[str, ...]


def read_captions(found: Listing) -> dict[str, Texts]:
    """Returns the captions of pictures by their names: one or several for each.

    * `metadata.jsonl`, beside the pictures or in a folder of a split, has a line for each picture:
      "file_name", and "text", which is a text or a list of texts.
    * Otherwise a picture `name.png` has its captions in `name.txt`, one in each line.

    Raises:
      ValueError: for a table that is damaged, or names pictures that are not there, and for a
        folder without captions.
    """
    tables = [name for name in found.tables if name.rpartition("/")[2] == TABLE]
    captions: dict[str, Texts] = {}
    for place in tables:
        captions.update(_of_table(found, place))
    missing = [name for name in captions if name not in found.files]
    if missing:
        raise ValueError(
            f"{found.root / tables[0]} names {len(missing):,} pictures that are not there, such as "
            f"{missing[0]!r}; add them, or remove their lines"
        )
    if not tables:
        texts = {name.rpartition(".")[0]: name for name in found.texts}
        for name in found.files:
            beside = texts.get(name.rpartition(".")[0])
            if beside is not None:
                captions[name] = _of_text(found, beside)
    captions = {name: texts for name, texts in captions.items() if texts}
    if not captions:
        raise ValueError(
            f"{found.root} has no captions; expected {TABLE} with 'file_name' and 'text' on each "
            "line, or a .txt beside each picture"
        )
    return captions


def _of_table(found: Listing, place: str) -> dict[str, Texts]:
    """Returns the captions of one metadata.jsonl."""
    start = place[: -len(TABLE)]
    captions = {}
    for number, line in enumerate(found.read(place, MAX_TABLE).splitlines(), 1):
        try:
            entry = json.loads(line)
            name, texts = entry["file_name"], entry["text"]
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise ValueError(
                f"{found.root / place}, line {number}, is no JSON object with 'file_name' and "
                f"'text' ({error})"
            ) from error
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(name, str) or not _are_texts(texts):
            raise ValueError(
                f"{found.root / place}, line {number}: expected a name, and a text or a list of "
                f"texts; got {str(texts):.80}"
            )
        captions[start + name] = tuple(text.strip() for text in texts if text.strip())
    return captions


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _of_text(found: Listing, place: str) -> Texts:
    """Returns the captions of one .txt file."""
    try:
        lines = found.read(place, MAX_TEXT).decode().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{found.root / place} is no text in UTF-8 ({error})") from error
    return tuple(line.strip() for line in lines if line.strip())


@dataclasses.dataclass(frozen=True, eq=False)
class Captioned(ImageDataset):
    """A dataset of pictures with captions; their labels are numbers of rows in `table`.

    Attributes:
      train: examples for training.
      test: examples of the test split.
      rows: number of the row in `table` of each example, for "train" and "test".
      table: the captions of every picture. One of several is drawn anew in every batch.
      flip: whether a random half of the training images is mirrored.
      summary: see Summary.
    """

    train: Decoded
    test: Decoded
    rows: Mapping[str, np.ndarray]
    table: Sequence[Texts]
    flip: bool = False
    summary: Summary = Summary()

    num_labels = 1
    labelled = False

    @property
    def spec(self) -> DataSpec:
        """The spec of the pictures with captions."""
        return caption_data(self.shape)

    @property
    def null(self) -> dict[str, np.ndarray]:
        """The empty caption."""
        return {"caption": as_array([""])}

    def conditions(self, label: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the rows of the captions, for `batches`."""
        return {"caption": label}

    def images(self, split: str, num: int | None = None) -> Source:
        """Returns a fixed sample of a split; see Dataset.images."""
        found = super().images(split, num)
        return found._replace(label=np.zeros_like(found.label))

    def captions(self, split: str, num: int | None = None) -> list[str]:
        """Returns the first caption of each of `images` with the same arguments."""
        order = np.sort(np.random.default_rng(0).permutation(len(self.rows[split]))[:num])
        return [self.table[row][0] for row in self.rows[split][order]]

    def batches(
        self, seed: int, start: int, size: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Rows]:
        """Yields batches with one caption of each picture; see Dataset.batches."""
        for rows in super().batches(seed, start, size, part):
            texts = [self.table[row] for row in rows.cond["caption"]]
            # A function of seed and number, so that any process and any start draws the same.
            turns = [np.random.default_rng((seed, int(i))).random() for i in rows.index]
            chosen = [text[int(turn * len(text))] for text, turn in zip(texts, turns, strict=True)]
            yield rows._replace(cond={"caption": as_array(chosen)})

    def without_images(self) -> Prompts:
        """Returns a dataset of all training captions, for data-free methods."""
        return Prompts(self.spec, tuple(t for row in self.rows["train"] for t in self.table[row]))
