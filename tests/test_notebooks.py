"""Tests of the notebooks: stored with outputs, and run at smoke size as on Colab."""

import contextlib
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig

import nbformat
import pytest
from nbclient import NotebookClient

from benchmarks import notebooks
from tests.toys import ROOT

NAMES = ("quickstart", "text_to_image", "imagenet64_guided", "released")
REPOSITORY = "https://github.com/distill-jax/distill_jax"
WIDGETS = "application/vnd.jupyter.widget-state+json"


def path_of(name):
    return ROOT / "notebooks" / f"{name}.ipynb"


def read(name):
    return nbformat.read(path_of(name), as_version=4)


def code_cells(book):
    return {cell["id"]: cell for cell in book.cells if cell.cell_type == "code"}


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_stored_as_nbformat_writes_it(name):
    book = read(name)
    nbformat.validate(book)
    assert path_of(name).read_text() == nbformat.writes(book) + "\n"
    ids = [cell["id"] for cell in book.cells]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[a-z-]+", key) for key in ids)  # Names, not random ids of an editor.
    assert book.metadata.kernelspec.name == "python3"
    assert book.metadata.accelerator == "GPU"
    assert book.metadata.colab.name == f"{name}.ipynb"
    assert "widgets" not in book.metadata


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_outputs_are_of_one_run_of_all_cells(name):
    """benchmarks/notebooks.py stores pictures, no errors, and nothing of its machine."""
    cells = code_cells(read(name))
    counts = [cell.execution_count for cell in cells.values()]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [out for cell in cells.values() for out in cell.outputs]
    assert len(images(outputs)) > 1
    kinds = {kind for out in outputs for kind in out.get("data", {})}
    assert kinds <= {"image/png", "text/plain", "text/markdown"}
    text = text_of(outputs)
    assert "device(s): cpu" in text
    assert "\r" not in text
    for part in ("/tmp", "/home", "/work", "Traceback", "Warning"):
        assert part not in text
    assert path_of(name).stat().st_size < 300_000


def test_outputs_are_stored_as_a_person_sees_them():
    folder = "/tmp/abc"
    texts = (
        "\rs00:  50%|##  |",
        "\rs00: 100%|####|\n",
        f"\x1b[1mdone\x1b[0m {folder}/runs/a\n",
        " \n",
    )
    outputs = [nbformat.v4.new_output("stream", name="stdout", text=text) for text in texts]
    outputs.insert(1, nbformat.v4.new_output("stream", name="stderr", text="\rs00:  75%|### |"))
    widget = {"application/vnd.jupyter.widget-view+json": {}}
    outputs.append(nbformat.v4.new_output("display_data", widget))
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=outputs)])
    book.metadata.widgets = {}
    notebooks.clean(book, folder)
    assert [out.text for out in book.cells[0].outputs] == ["done runs/a\n"]
    assert "widgets" not in book.metadata


def test_there_are_no_other_notebooks_and_all_install_alike():
    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")) == sorted(NAMES)
    assert len({code_cells(read(name))["install"].source for name in NAMES}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_badges_and_links_lead_to_files_that_are_there(name):
    book = read(name)
    badge = "https://colab.research.google.com/github/distill-jax/distill_jax/blob/main/{}"
    own = badge.format(f"notebooks/{name}.ipynb")
    assert f"]({own})" in book.cells[0].source
    assert f"]({own})" in (ROOT / "README.md").read_text()
    text = "\n".join(cell.source for cell in book.cells)
    linked = re.findall(r"distill-jax/distill_jax/blob/main/([\w./]+)", text)
    assert len(linked) > 4
    for path in linked:
        assert (ROOT / path).exists(), path


class Executed:
    """An executed notebook, whose training was then repeated, stopped and resumed."""

    def __init__(self, name, folder, environment):
        self.book = read(name)
        train = next(cell.source for cell in self.book.cells if cell["id"] in TRAINING)
        begun, loop, rest = train.partition("for stage in run.stages:")
        last = loop.replace("run.stages", "run.stages[-1:]")
        stop = "signal.raise_signal(signal.SIGINT)\n"
        forget = "import shutil\nshutil.rmtree(run.stages[-1].directory)\n"
        self._append("again", train)
        self._append("stopped", forget + begun + stop + last + rest)
        self._append("resumed", train)
        client = NotebookClient(self.book, timeout=480, kernel_name="python3")
        with client.setup_kernel(env=environment, cwd=str(folder)):
            for index, cell in enumerate(self.book.cells):
                client.execute_cell(cell, index)
            client.set_widgets_metadata()

    def _append(self, key, source):
        tags = {"tags": ["raises-exception"]} if key == "stopped" else {}
        self.book.cells.append(nbformat.v4.new_code_cell(source, id=key, metadata=tags))

    def outputs(self, key):
        return code_cells(self.book)[key].outputs

    def images(self, key):
        return images(self.outputs(key))

    def text(self, key):
        return text_of(self.outputs(key))

    @property
    def widgets(self):
        """Returns the text in output widgets, where an error does not stop the notebook."""
        states = self.book.metadata.widgets[WIDGETS]["state"].values()
        return [out for state in states for out in state["state"].get("outputs", ())]


TRAINING = ("train", "smoke")  # The cells that train.


def images(outputs):
    return [out.data["image/png"] for out in outputs if "image/png" in out.get("data", {})]


def text_of(outputs):
    found = []
    for out in outputs:
        data = out.get("data", {})
        found.append(data.get("text/markdown") or data.get("text/plain") or out.get("text", ""))
    return "\n".join(found)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Returns the variables of a kernel that imports this checkout and leaves no files."""
    folder = str(tmp_path_factory.mktemp("jupyter"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_RUNTIME_DIR", folder)
        patch.setenv("IPYTHONDIR", folder)
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("DISTILL_JAX_NOTEBOOK_SIZE", "smoke")
        yield dict(os.environ)


@pytest.fixture(scope="module")
def quickstart(environment, tmp_path_factory):
    return Executed("quickstart", tmp_path_factory.mktemp("quickstart"), environment)


@pytest.fixture(scope="module")
def imagenet(environment, tmp_path_factory):
    return Executed("imagenet64_guided", tmp_path_factory.mktemp("imagenet"), environment)


@pytest.fixture(scope="module")
def text(environment, tmp_path_factory):
    return Executed("text_to_image", tmp_path_factory.mktemp("text"), environment)


def check_all(done):
    """Checks what all notebooks have: a device, no warnings, and sliders that draw."""
    assert re.search(r"^1 device\(s\): cpu, JAX \d", done.text("install"))
    assert "fetching" not in done.text("install")
    assert "Runtime > Change runtime type" in done.text("install")
    for cell in code_cells(done.book).values():
        errors = [out.text for out in cell.outputs if out.get("name") == "stderr"]
        assert not any("Traceback" in text or "rror" in text for text in errors), errors
    assert len(images(done.widgets)) == 1
    assert not [out for out in done.widgets if out["output_type"] == "error"]


def test_the_quickstart_trains_reports_and_draws(quickstart):
    check_all(quickstart)
    assert re.search(r"\| s07_n0001 +\| progressive", quickstart.text("plan"))
    assert len(quickstart.images("train")) == 8
    trained = quickstart.text("train")
    assert trained.count(": finished in") == 8
    assert "s07_n0001 (8/8): 8/8, loss" in trained
    assert "**s00_teacher**, 64 x 2 network call(s) per image" in trained
    assert re.search(r"^\| sampler +\| stage +\| num_steps", quickstart.text("report"), re.M)
    for key in ("report", "sample", "compare"):
        assert len(quickstart.images(key)) == 1


def test_the_text_notebook_trains_draws_prompts_and_edits(text):
    check_all(text)
    assert re.search(r"\| s06_n0001 +\| progressive", text.text("plan"))
    assert len(text.images("train")) == 7
    for lines in (text.text("prompt"), text_of(text.widgets)):
        assert re.search(r"teacher, 64 calls: \d of 8 show the prompt", lines)
        assert re.search(r"teacher, 2 calls: \d of 8 .*\n.*student, 1 call\(s\): \d of 8", lines)
    assert len(text.images("prompt")) == len(text.images("edit")) == 1
    boxes = text.book.metadata.widgets[WIDGETS]["state"].values()
    values = [box["state"].get("value") for box in boxes]
    assert "a red circle above a blue square" in values


def test_the_text_notebook_needs_no_widgets(text):
    cell = code_cells(text.book)["sliders"].source
    known = dict.fromkeys(("compare", "students", "PROMPT"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ipywidgets", None)  # An import of it fails.
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            exec(cell, known)
    assert "without it call compare('a cyan cross', w=1.0, steps=4)" in shown.getvalue()


def test_a_bar_is_replaced_in_place(quickstart):
    bars = re.findall(r"\r(s\d+_\w+) \(\d/8\): +\d+%\|.*?\| \d/8 \[", quickstart.text("train"))
    assert len(set(bars)) == 8


def test_training_again_goes_on_from_what_is_finished(quickstart, text, imagenet):
    for done, key in ((quickstart, "train"), (text, "train"), (imagenet, "smoke")):
        assert done.images("again") == done.images(key)
        assert "finished in" not in done.text("again")


def test_the_stop_button_saves_and_the_cell_run_again_goes_on(quickstart, text, imagenet):
    for done, key in ((quickstart, "train"), (text, "train"), (imagenet, "smoke")):
        error = done.outputs("stopped")[-1]
        assert (error.ename, error.evalue) == ("StoppedError", "stopped after iteration 1")
        assert "going on after iteration 1" in done.text("resumed")
        assert done.images("resumed") == done.images(key)


def test_the_imagenet_notebook_trains_counts_draws_and_reports(imagenet):
    check_all(imagenet)
    assert len(imagenet.images("smoke")) == 4
    assert "hours on 64 v4" in imagenet.text("costs")
    assert "297,081,219 parameters (unet)" in imagenet.text("costs")
    assert "8 images, 1 network call(s) each: samples.png" in imagenet.text("student")
    assert re.search(r"^\| sampler +\| stage +\| num_steps", imagenet.text("report"), re.M)
    for key in ("student", "report"):
        assert len(imagenet.images(key)) == 1


def test_the_notebook_of_a_released_file_reads_it_and_goes_on_halving(environment, tmp_path):
    book = read("released")
    client = NotebookClient(book, timeout=480, kernel_name="python3")
    client.execute(env={**environment, "DISTILL_JAX_NOTEBOOK_UPDATES": "3"}, cwd=str(tmp_path))
    shown = {key: text_of(cell.outputs) for key, cell in code_cells(book).items()}
    assert re.search(r"^digits_8: \d+", shown["file"], re.M)
    assert "google_research" in shown["import"]
    assert "the times of its steps only" in shown["import"]
    assert "8 network calls per image" in shown["sample"]
    assert "rows: 8 calls, 4 calls, 2 calls, 1 calls" in shown["compare"]
    assert len(images(code_cells(book)["compare"].outputs)) == 1


def test_without_the_package_the_first_cell_fetches_and_installs_it(tmp_path):
    origin = tmp_path / "origin"
    shutil.copytree(ROOT / "distill_jax", origin / "distill_jax")
    shutil.copytree(ROOT / "configs", origin / "configs")
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, origin)
    git = ("git", "-C", str(origin), "-c", "user.name=test", "-c", "user.email=test@localhost")
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    site = tmp_path / "site"
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    environment = {
        **os.environ,
        # Python ignores .pth files in PYTHONPATH, so an editable install of it is hidden.
        "PYTHONPATH": os.pathsep.join([str(site), *libraries]),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{origin}.insteadOf",
        "GIT_CONFIG_VALUE_0": REPOSITORY,
        "PIP_TARGET": str(site),
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # 0 disables isolation: the flag is negated.
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    source = code_cells(read("quickstart"))["install"].source
    source += "\nimport distill_jax\nprint(distill_jax.__file__, ROOT)"
    for fresh in (True, False):  # The second time the package is installed.
        done = subprocess.run(
            [sys.executable, "-S", "-c", source],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        package, checkout = map(pathlib.Path, lines[-1].split())
        assert package == site / "distill_jax" / "__init__.py"
        assert checkout == tmp_path / "distill-jax"
        assert any(line.startswith("1 device(s): cpu") for line in lines)
        assert ("installing" in done.stdout) == ("fetching" in done.stdout) == fresh
