"""Runs notebooks at their default size, and stores them with their outputs.

python benchmarks/notebooks.py quickstart imagenet64_guided

Progress bars are not stored, nor sliders, which need a kernel.
"""

import argparse
import base64
import io
import os
import pathlib
import re
import tempfile

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
LARGE = 60_000  # Bytes of a picture that is stored with fewer colours.
COLOURS = (64, 16)


def run(book, folder):
    """Runs all cells of a notebook in a folder, with this checkout's package."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    client = NotebookClient(book, timeout=None, kernel_name="python3")
    client.execute(env=environment, cwd=folder)


def finished(text):
    """Returns printed text without progress bars, what else was replaced in a line, and colours."""
    text = re.sub(r"[^\r\n]*%\|[^\r\n]*[\r\n]?|\x1b\[[0-9;]*m", "", text)
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def joined(outputs):
    """Returns outputs with what was printed in one piece, where nothing is drawn in between."""
    found = []
    for out in outputs:
        if found and "stream" == out.output_type == found[-1].output_type:
            found[-1].text += out.text
        else:
            found.append(out)
    return found


def smaller(data):
    """Returns a PNG in base64, with fewer colours if it is large."""
    raw = base64.b64decode(data)
    picture = Image.open(io.BytesIO(raw)).convert("RGB")
    for count in COLOURS:
        if len(raw) > LARGE:
            picture.quantize(count, dither=0).save(stored := io.BytesIO(), "PNG", optimize=True)
            raw = min(raw, stored.getvalue(), key=len)
    return base64.b64encode(raw).decode()


def clean(book, folder):
    """Removes sliders, states of widgets, times of cells and the folder from a notebook."""
    book.metadata.pop("widgets", None)
    for cell in (cell for cell in book.cells if cell.cell_type == "code"):
        cell.metadata.pop("execution", None)
        kept = [out for out in cell.outputs if not widget(out)]
        for out in kept:
            if "text" in out:
                out.text = finished(out.text).replace(f"{folder}/", "")
            if "image/png" in out.get("data", {}):
                out.data["image/png"] = smaller(out.data["image/png"])
        cell.outputs = joined(out for out in kept if out.get("text", "-").strip())


def widget(out):
    return any("widget" in kind for kind in out.get("data", {}))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+")
    for name in parser.parse_args().names:
        path = ROOT / "notebooks" / f"{name}.ipynb"
        book = nbformat.read(path, as_version=4)
        metadata = dict(book.metadata)
        with tempfile.TemporaryDirectory() as folder:
            run(book, folder)
            clean(book, os.path.realpath(folder))
        book.metadata = nbformat.from_dict(metadata)
        path.write_text(nbformat.writes(book) + "\n")
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
