"""Tests that a mutated command line ends in its result or in one message."""

import random
import re

from distill_jax.run import pipeline, plan
from tests import forks, fuzz
from tests.toys import TINY_CHAIN

COMMANDS = {
    "main": ("--config={folder}/tiny.py", "--plan"),
    "cache": ("--config={folder}/tiny.py", "--out={folder}/cache"),
    "sample": ("--student={folder}/run", "--num=2", "--out={folder}/x.npy"),
    "evaluate": ("--student={folder}/run", "--num=8", "--w=0"),
    "reference": (
        "--config={folder}/tiny.py",
        "--features=efflite0",
        "--num=2",
        "--out={folder}/x.npz",
    ),
    "edit": ("sdedit", "--student={folder}/run", "--num=2", "--out={folder}/x.npy"),
    "mirror": ("--workdir={folder}/run", "--to=mlflow"),
    "posthoc": ("--stage={folder}/run", "--sigma_rel=0.1", "--out={folder}/long"),
    "spectrum": ("--config={folder}/tiny.py", "--num=9", "--out={folder}/x.png"),
    "teachers": ("check", "{folder}/run/s00_teacher", "--num=2"),
}
TEXTS = (
    *(
        "",
        "-1",
        "0",
        "1.5",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "x",
        "1,",
        "1,nan",
        "[1]",
        "{}",
        "(1,2)",
    ),
    *(str(10**11), str(2**32), str(10**30), "9" * 500, "a" * 500, "\x1b[31m", "../..", "None"),
    *("/etc/passwd", "/dev/null/x", "/nonexistent/x.png", "nowhere:Name", "x@1:2", "8xh100@nan"),
)


def flags_of(command):
    """Returns the names of a command's own flags, from its help."""
    _, shown, _ = forks.run(f"distill_jax.{command}", "--help")
    return re.findall(r"^\s+(?:-\w,)?--(?:\[no\])?(\w+):", shown, re.MULTILINE)


def test_a_mutated_command_line_ends_in_its_result_or_one_message(tmp_path, request):
    (tmp_path / "tiny.py").write_text(TINY_CHAIN)
    config = fuzz.load_file(tmp_path / "tiny.py").get_config()
    assert pipeline.run(plan.make(config, tmp_path / "run"), stop=lambda: False)
    chosen = []
    for command, words in COMMANDS.items():
        given = [word.format(folder=tmp_path) for word in words]
        names = [name for name in flags_of(command) if name not in ("help", "helpfull", "allow")]
        assert names
        keys = ["config.seed", "config.model", "config.stages.s00_teacher.steps"]
        names += keys if "config" in names and command == "main" else []
        for name in names:
            # What --out names is written.
            texts = [f"{tmp_path}/{text}" if name in ("out", "workdir") else text for text in TEXTS]
            chosen += [(command, (*given, f"--{name}={text}")) for text in texts]
    random.Random(0).shuffle(chosen)
    for command, words in chosen[: 300 if request.config.getoption("--all") else 12]:
        code, _, stderr = forks.run(f"distill_jax.{command}", *words)
        text = f"{command} {' '.join(words)[:300]}: {code}\n{stderr[-2000:]}"
        assert code in (0, 1), text
        assert "Traceback" not in stderr, text
        errors = re.findall(r"^error: .*", stderr, re.MULTILINE)
        assert len(errors) == code, text
        assert all(len(error) <= fuzz.LENGTH for error in errors), text
