"""COCO's annotations with captions: captions_train2017.json beside the folder train2017."""

from typing import Any

from distill_jax.data.listing import COCO, MAX_TABLE, Listing
from distill_jax.data.texts import Texts, parsed, text_of


def of_coco(found: Listing, place: str) -> dict[str, Texts]:
    """Returns the captions of one captions_SPLIT.json by the names of the pictures.

    The pictures are in a folder SPLIT beside the file, or beside the file's own folder, as COCO's
    archives unpack. If none of them is there, the file is passed over.

    Raises:
      ValueError: for a file that is no annotations of COCO.
    """
    where = str(found.root / place)
    content = parsed(text_of(found, place, MAX_TABLE), where)
    images, notes = content.get("images", []), content.get("annotations", [])
    if not _are(images, ("id", int), ("file_name", str)) or not _are(
        notes, ("image_id", int), ("caption", str)
    ):
        raise ValueError(
            f"{where} is no COCO annotations; expected 'images' with 'id' and 'file_name', and "
            "'annotations' with 'image_id' and 'caption'"
        )
    above, _, base = place.rpartition("/")
    split = COCO.fullmatch(base).group(1)  # type: ignore[union-attr]  # Its name matches.
    tops = dict.fromkeys((above, above.rpartition("/")[0]))
    starts = [f"{top}/{split}/".removeprefix("/") for top in tops]
    names = {image["id"]: image["file_name"] for image in images}
    start = next((s for s in starts if any(s + name in found.files for name in names.values())), "")
    if not start:
        found.passed.add(f"without the pictures of a folder {split}", place)
        return {}
    texts: dict[str, list[str]] = {start + name: [] for name in names.values()}
    for note in notes:
        name = names.get(note["image_id"])
        if name is None:
            raise ValueError(f"{where} has a caption of image {note['image_id']}, which is unknown")
        if text := note["caption"].strip():
            texts[start + name].append(text)
    return {name: tuple(each) for name, each in texts.items()}


def _are(entries: Any, *fields: tuple[str, type]) -> bool:
    """Returns whether a value is a list of objects with these fields."""
    return isinstance(entries, list) and all(
        isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in fields)
        for entry in entries
    )
