"""Tests of --config: what is wrong with a config file is one message with its line."""

import re

import pytest

from distill_jax.runtime.config_file import listed
from tests import forks
from tests.toys import ROOT, TINY_CHAIN

FILES = {
    "syntax": ("def f(:", "syntax.py, line 1: invalid syntax"),
    "name": ("x = 1\ny = undefined", "name.py, line 2: NameError: name 'undefined' is not defined"),
    "missing": ("import nothing_there", "missing.py, line 1: ModuleNotFoundError"),
    "key": ("def get_config():\n    return {}['a']", "key.py, line 2: KeyError: 'a'"),
    "division": ("def get_config():\n    return 1 / 0", "division.py, line 2: ZeroDivisionError"),
    "other": ("x = 1", "other.py has no get_config(): it is no config"),
    "none": ("def get_config():\n    pass", "none.py returned NoneType; expected a ConfigDict"),
    "plain": ("def get_config():\n    return {}", "plain.py returned dict; expected a ConfigDict"),
    "zeros": ("\0\0", "source code string cannot contain null bytes"),
    "ours": (
        "from distill_jax.config import halvings\ndef get_config():\n    halvings(12, 5, steps=1)",
        "error: halvings from 12 to 5 steps",
    ),
}


def message(*flags):
    """Returns the only message of a command that ends in one."""
    code, _, stderr = forks.run("distill_jax.main", *flags)
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert (code, len(lines)) == (1, 1), stderr
    assert "Traceback" not in stderr
    return lines[0]


@pytest.mark.parametrize("name", FILES)
def test_an_error_in_a_config_file_is_its_line(name, tmp_path):
    content, expected = FILES[name]
    path = tmp_path / f"{name}.py"
    path.write_text(content)
    assert expected in message(f"--config={path}", "--plan")


def test_the_list_has_every_config_with_its_sizes(tmp_path):
    code, stdout, stderr = forks.run("distill_jax.main", "--config=list")
    assert code == 0, stderr
    lines = {line.split()[1]: line for line in stdout.splitlines()[2:]}
    assert set(lines) == {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert "full, gpu, small, smoke" in lines["configs/cifar10_guided.py"]
    assert "full, cpu, lora, smoke" in lines["configs/emoji_swd.py"]
    with pytest.raises(ValueError, match="has no configs; start in the project's folder"):
        listed(tmp_path)


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("schedule.logsnr_min=-10.0", None),  # An option that the config leaves at its default.
        ("stages.s01_guided.method.clip_target=True", None),
        ("model.widht=3", "network 'mlp' does not take 'widht'; .* did you mean 'width'?"),
        ("modle.width=3", "unknown key 'modle'. Did you mean .model."),
        ("data.path=foo", "dataset 'digits' does not take 'path'"),
        ("model.width.x=3", "model.width.x"),
    ],
)
def test_any_option_can_be_set(flag, text):
    given = (f"--config={ROOT / 'configs' / 'digits_guided.py'}", f"--config.{flag}", "--plan")
    if text:
        assert re.search(text, message(*given))
    else:
        code, _, stderr = forks.run("distill_jax.main", *given)
        assert code == 0, stderr


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("configs/digit_guided.py", "configs/digits_guided.py"),
        ("configs/imagenet_guided.py:smoke", "configs/imagenet64_guided.py"),
        ("digits_swd", "configs/digits_swd.py"),
        ("configs", "configs/digits_guided.py"),
        ("", "configs/digits_guided.py"),
        ("/dev/zero", "configs/"),
        ("/etc/passwd", "configs/digits_guided.py"),
    ],
)
def test_a_config_that_does_not_exist_names_the_nearest(given, near):
    text = message(f"--config={given}", "--plan")
    assert f"--config={given.partition(':')[0]} " in text
    assert f"expected FILE.py or FILE.py:size, such as {near}" in text


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--plan_for=0xv4"], "--plan_for is '0xv4'; expected COUNTxDEVICE"),
        (["--plan_for=99999999999xv4"], "expected COUNTxDEVICE"),
        (["--plan_for=8xh100@nan"], "expected COUNTxDEVICE"),
        ([f"--plan_for=8x{'9' * 50}"], "expected COUNTxDEVICE"),
        ([f"--profile={'9' * 30}:{'9' * 31}"], "expected FIRST:LAST"),
        (["--num_processes=0"], "--num_processes=0"),
        (["--config.stages=5"], "`5` is not a dict"),
        (["--config.data={}"], "the name of the dataset is None; expected one of captioned_folder"),
        (["--config.data.name=[1]"], "unknown dataset '[1]'"),
        (
            ["--config.seed=20261126051800"],
            "config.seed is 20261126051800; expected a whole",
        ),
        ([f"--config.seed={'9' * 500}"], "config.seed"),
        ([f"--config.stages.s00_teacher.learning_rate={'9' * 400}"], "learning_rate"),
        (["--config.matmul_precision=float16"], "config.matmul_precision is 'float16'"),
        (["--config.mesh.data=0"], "config.mesh.data is 0; expected -1 or a number from 1"),
        (["--config.microbatches=0"], "config.microbatches is 0; expected a whole number from 1"),
        (["--flagfile=/nonexistent"], "--flagfile=/nonexistent is no file"),
    ],
)
def test_a_flag_that_makes_no_sense_is_one_message(flags, expected, tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(TINY_CHAIN)
    text = message(f"--config={path}", "--plan", f"--workdir={tmp_path}/w", *flags)
    assert expected in text
    assert len(text) < 1100


def test_a_config_may_stand_behind_its_flag():
    code, stdout, stderr = forks.run(
        "distill_jax.main", "--config", ROOT / "configs" / "digits_guided.py:smoke", "--plan"
    )
    assert code == 0, stderr
    assert "s07_n0001" in stdout
