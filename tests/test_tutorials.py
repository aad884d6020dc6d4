"""Tests of the first pages: their commands, executed as printed where that is cheap.

COMMANDS has every command of README.md, docs/index.md and the tutorials. RUN is executed here, in a
folder where the names that the pages use exist; for the others it says what tests them instead.
tests/test_documents.py parses them all, as the programs do.
"""

import re
import shlex

import pytest
from PIL import Image

import distill_jax
from distill_jax import main
from distill_jax.run import plan
from tests import forks
from tests.data.pictures import write_folder
from tests.roads import write
from tests.test_documents import COMMAND, text_of
from tests.toys import ROOT, smoke_config

PAGES = [ROOT / "README.md", ROOT / "docs" / "index.md", *(ROOT / "docs").glob("tutorial_*.md")]
RUN = "executed here"
SMOKE = "minutes: tests/test_smoke.py or tests/test_chain.py trains this config at its smoke size"
DRY = "tests/test_documents.py executes it as a dry run"
FILE = "needs a published file: tests/test_roads.py goes this way with a small one"
COUNTS = "16 CPU-seconds or more: tests/test_commands.py plans a smaller config for other devices"
MAIN = "python -m distill_jax.main --config="
SAMPLE = "python -m distill_jax.sample --student="
COMMANDS = {
    "launch/test.sh": "this suite",
    "launch/local.sh --config=configs/digits_guided.py": SMOKE,
    "launch/local.sh --config=configs/digits_guided.py:smoke": SMOKE,
    f"{SAMPLE}runs/digits_guided --num=100 --w=2 --out=grid.png": RUN,
    f"{SAMPLE}runs/digits_guided/s05_n0004 --label=3 --num=2 --w=2 --strip --out=strip.png": RUN,
    "python -m distill_jax.evaluate --student=runs/digits_guided/s05_n0004": (
        "2,000 samples: tests/test_commands.py evaluates 40"
    ),
    "python benchmarks/pictures.py --only=digits_grids,digits_report": "needs the full run",
    f"{MAIN}list": RUN,
    "python -m distill_jax.report WORKDIR": "tests/test_report.py reports runs and their papers",
    f"{MAIN}configs/folder.py:DIR --plan": RUN,
    f"{MAIN}configs/folder.py:DIR,small --workdir=runs/pictures": SMOKE,
    f"{SAMPLE}runs/pictures --num=16 --w=1 --out=grid.png": "as the first sample, of another run",
    "python -m distill_jax.teachers edm edm-cifar10-32x32-cond-vp.pkl --out=teachers/edm_cifar10": (
        RUN
    ),
    "python -m distill_jax.teachers check teachers/edm_cifar10": (
        "12 CPU-seconds: tests/teachers/test_commands.py checks a smaller network"
    ),
    f"{MAIN}configs/cifar10_edm_sid.py --config.teacher=teachers/edm_cifar10": FILE,
    f"{MAIN}configs/cifar10_edm_sid.py:plan --plan_for=8xh100": COUNTS,
    f"{MAIN}configs/cifar10_edm_sid.py:smoke": SMOKE,
    "python -m distill_jax.teachers google_research cifar_8 --out=teachers/google_cifar10_8": FILE,
    "python -m distill_jax.teachers check teachers/google_cifar10_8": FILE,
    f"{SAMPLE}teachers/google_cifar10_8 --num=16 --out=released.png": FILE,
    f"{MAIN}configs/cifar10_google_pd.py:from_8": FILE,
    "launch/local.sh --config=configs/shapes_guided.py": SMOKE,
    "launch/local.sh --config=configs/shapes_guided.py:smoke": SMOKE,
    f'{SAMPLE}runs/shapes_guided --prompt="a red circle above a blue square" --w=2 --num=16 '
    "--out=grid.png": RUN,
    f'{SAMPLE}runs/shapes_guided/s00_teacher --prompt="a red circle" '
    '--negative_prompt="a red cross" --w=2': RUN,
    "launch/local.sh --config=configs/shapes_sid_lsg.py": SMOKE,
    "launch/local.sh --config=configs/shapes_swd.py": SMOKE,
    f"{MAIN}configs/imagenet64_guided.py:deterministic --plan_for=64xv4": COUNTS,
    "JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=8 python -m distill_jax.main "
    "--config=configs/digits_guided.py --config.mesh.fsdp=8 --plan=compile": (
        "23 CPU-seconds: tests/test_scaling.py compiles smaller plans"
    ),
    "NODES=2 CONFIG=configs/imagenet64_guided.py:deterministic ARGS=--config.mesh.fsdp=8 "
    "launch/slurm.sh --dry-run --partition=gpu": DRY,
    "PROJECT=my-project ZONE=us-west4-a WORKDIR=gs://my-bucket/guided "
    "launch/tpu_pod.sh --dry-run": DRY,
    "WORKDIR=gs://my-bucket/guided SOURCE=https://github.com/my-name/distill_jax "
    "launch/gke.sh --dry-run": DRY,
    **{f"launch/tpu_pod.sh {word}": DRY for word in ("logs", "errors", "stop", "down")},
    f"{MAIN}examples/my_config.py:smoke": "tests/test_examples.py trains it",
    f"{SAMPLE}runs/my_config_smoke --allow=examples.my_network:convolutions": (
        "tests/test_examples.py samples from it"
    ),
}
# What an executed command prints or writes, by the word that is its own.
PRINTED = {
    "--num=100": "100 images, 1 network call each, by s07_n0001: ",
    "--strip": "2 images, 4 network calls each, by s05_n0004: ",
    "above": "16 images, 1 network call each, by s06_n0001: ",
    "--negative_prompt=a red cross": "64 network calls each, by s00_teacher: ",
    "--plan": "3 classes: cat, dog, emu",
    "--config=list": "digits_guided",
    "edm": "next: python -m distill_jax.teachers check teachers/edm_cifar10",
}


def printed(page):
    """Returns the commands of a page as they are printed, without the remarks after them."""
    found = COMMAND.finditer(text_of(page))
    return [re.split(r"  (?!-)", each[0])[0].strip() for each in found]


def test_the_table_has_the_commands_of_the_pages():
    assert {command for page in PAGES for command in printed(page)} == set(COMMANDS)


@pytest.fixture(scope="module")
def here(chain, tmp_path_factory):
    """Returns a folder like a checkout after the trainings, with a folder DIR of images."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "runs").mkdir()
    (folder / "runs" / "digits_guided").symlink_to(chain)
    students = ROOT / "distill_jax" / "students"
    (folder / "runs" / "shapes_guided").symlink_to(students / "shapes")
    write_folder(folder / "DIR")
    file = write("edm_cifar10", folder / "edm").path
    file.rename(folder / "edm-cifar10-32x32-cond-vp.pkl")
    return folder


@pytest.mark.parametrize("command", [each for each, how in COMMANDS.items() if how == RUN])
def test_a_command_works_as_printed(command, here):
    python, dash_m, module, *words = shlex.split(command)
    assert (python, dash_m) == ("python", "-m")
    code, stdout, stderr = forks.run(module, *words, folder=here)
    assert (code, "Traceback" in stderr) == (0, False), stderr
    (line,) = (line for word, line in PRINTED.items() if word in command.replace('"', ""))
    assert line in stdout
    for name in re.findall(r"--out=(\S+\.png)", command):
        with Image.open(here / name) as image:
            assert min(image.size) > 40


def test_the_command_at_the_end_of_a_run_draws_at_the_middle_of_its_strengths(chain):
    command = main._sample_command(plan.make(smoke_config(), chain))
    assert command == f"{SAMPLE}{chain / 's07_n0001'} --w=2"


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
def test_the_python_of_a_page_returns_what_its_remark_says(page, here, monkeypatch):
    monkeypatch.chdir(here)
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    known = {}
    exec(block, known)
    (shape,) = re.findall(r"# (\([\d, ]+\)) in \[-1, 1\]", block)
    assert str(known["x"].shape) == shape
    assert isinstance(known["student"], distill_jax.Student)
    assert abs(known["x"]).max() <= 1
