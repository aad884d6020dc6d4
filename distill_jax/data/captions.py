"""Captions of the pictures in a folder, and the dataset of pictures with captions."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from distill_jax.data.base import Rows, Source, Summary
from distill_jax.data.coco import of_coco
from distill_jax.data.images import Decoded, ImageDataset
from distill_jax.data.listing import COCO, MAX_TABLE, Listing
from distill_jax.data.prompts import Prompts, as_array
from distill_jax.data.texts import KEYS, Texts, lines_of, parsed, text_of, texts_in
from distill_jax.diffusion.spec import DataSpec, caption_data

TABLE = "metadata.jsonl"
MAX_TEXT = 2**18  # Bytes of a .txt or .json file beside a picture.


def read_captions(found: Listing) -> dict[str, Texts]:
    """Returns the captions of pictures by their names: one or several for each.

    * `metadata.jsonl`, beside the pictures or in a folder of a split, has a line for each picture:
      "file_name", and "text", "caption" or "prompt", which is a text or a list of texts.
    * COCO's `captions_SPLIT.json` names pictures of a folder SPLIT, see coco.
    * Otherwise a picture `name.png` has its captions in `name.txt`, one in each line. In tars,
      `name.json` may have them instead, like a line of metadata.jsonl.

    Raises:
      ValueError: for a table that is damaged, or names pictures that are not there, and for a
        folder without captions.
    """
    captions: dict[str, Texts] = {}
    for place in found.tables:
        base = place.rpartition("/")[2]
        if base == TABLE:
            named = _of_table(found, place)
        elif COCO.fullmatch(base):
            named = of_coco(found, place)
        else:
            continue
        missing = [name for name in named if name not in found.files]
        if missing:
            raise ValueError(
                f"{found.root / place} names {len(missing):,} pictures that are not there, such as "
                f"{missing[0]!r}; add them, or remove their lines"
            )
        captions.update(named)
    if not captions:
        captions = _beside(found)
    captions = {name: texts for name, texts in captions.items() if texts}
    if not captions:
        raise ValueError(
            f"{found.root} has no captions; expected {TABLE} with 'file_name' and 'text' on each "
            "line, COCO's captions_SPLIT.json, or a .txt beside each picture"
        )
    return captions


def _of_table(found: Listing, place: str) -> dict[str, Texts]:
    """Returns the captions of one metadata.jsonl."""
    start = place[: -len(TABLE)]
    captions = {}
    for number, line in enumerate(text_of(found, place, MAX_TABLE).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{found.root / place}, line {number},"
        entry = parsed(line, where)
        name, texts = entry.get("file_name"), texts_in(entry, where)
        if not isinstance(name, str) or texts is None:
            raise ValueError(
                f"{where} is no JSON object with 'file_name' and one of {', '.join(KEYS)}: "
                f"{line:.80}"
            )
        captions[start + name] = texts
    return captions


def _beside(found: Listing) -> dict[str, Texts]:
    """Returns the captions in the files beside pictures; a .txt counts before a .json."""
    names = {name.rpartition(".")[0]: name for name in found.files}
    captions: dict[str, Texts] = {}
    for place in sorted(found.texts, key=_is_json):
        name = names.get(place.rpartition(".")[0])
        if name is None:
            found.passed.add("texts without a picture", place)
        elif captions.get(name):
            continue
        elif _is_json(place):
            where = str(found.root / place)
            entry = parsed(text_of(found, place, MAX_TEXT), where)
            captions[name] = texts_in(entry, where) or ()
        else:
            captions[name] = tuple(lines_of(text_of(found, place, MAX_TEXT)))
    return captions


def _is_json(name: str) -> bool:
    return name.lower().endswith(".json")


@runtime_checkable
class Table(Protocol):
    """The captions of pictures by row; several threads may read them at once."""

    def __getitem__(self, row: int, /) -> Texts: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Captioned(ImageDataset):
    """A dataset of pictures with captions; their labels are numbers of rows in `table`.

    Attributes:
      train: examples for training.
      test: examples of the test split.
      rows: number of the row in `table` of each example, for "train" and "test".
      table: the captions of every picture. One of several is drawn anew in every batch, and
        a picture without one has the empty caption.
      flip: whether a random half of the training images is mirrored.
      summary: see Summary.
    """

    train: Decoded
    test: Decoded
    rows: Mapping[str, np.ndarray]
    table: Table
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
        return [_chosen(self.table[row], 0.0) for row in self.rows[split][order].tolist()]

    def batches(
        self, seed: int, start: int, size: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Rows]:
        """Yields batches with one caption of each picture; see Dataset.batches."""
        for rows in super().batches(seed, start, size, part):
            texts = [self.table[row] for row in rows.cond["caption"].tolist()]
            # A function of seed and number, so that any process and any start draws the same.
            turns = [np.random.default_rng((seed, int(i))).random() for i in rows.index]
            chosen = [_chosen(text, turn) for text, turn in zip(texts, turns, strict=True)]
            yield rows._replace(cond={"caption": as_array(chosen)})

    def without_images(self) -> Prompts:
        """Returns a dataset of all training captions, for data-free methods."""
        rows = self.rows["train"].tolist()
        return Prompts(self.spec, tuple(text for row in rows for text in self.table[row]))


def _chosen(texts: Texts, turn: float) -> str:
    """Returns one of the captions by a number in [0, 1); the empty one if there are none."""
    return texts[int(turn * len(texts))] if texts else ""
