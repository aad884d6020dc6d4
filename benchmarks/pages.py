"""Screenshots for docs/ of the page of distill_jax.demo, in a headless Chromium.

python benchmarks/pictures.py --only=demo  # needs Chromium, npm and the extra onnx
"""

import importlib.util
import pathlib
import subprocess
import sys
import tempfile

from tests.browser import DRAWN, Chromium, Page, installed, served

ROOT = pathlib.Path(__file__).parent.parent


def demo(student, width, pictures=4, **choices):
    """Returns a function that draws the whole page of a student, after choices by selector."""

    def make(out):
        binary = installed()
        if binary is None or importlib.util.find_spec("jax2onnx") is None:
            sys.exit(f"{out} is left as it is; it needs Chromium and the extra onnx")
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            words = [student, f"--pictures={pictures}", f"--out={folder / 'page'}"]
            command = [sys.executable, "-m", "distill_jax.demo", *words]
            subprocess.run(command, cwd=ROOT, check=True)
            browser = Chromium(binary, folder / "profile")
            with served(folder / "page") as address:
                page = Page(browser, address, width)
                page.wait(DRAWN)
                for selector, value in choices.items():
                    page.choose(selector, value)
                page.wait(DRAWN)
                page.resize(width, page.evaluate("document.body.offsetHeight"))
                out.write_bytes(page.screenshot())
            browser.close()

    return make


CHOICES = {
    ".menu:nth-of-type(1)": "a red circle",
    ".menu:nth-of-type(2)": "above",
    ".menu:nth-of-type(3)": "a blue square",
}
PAGES = {"demo_digits": demo("digits", 1440), "demo_shapes": demo("shapes", 390, 4, **CHOICES)}
