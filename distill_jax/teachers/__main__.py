"""Imports a foreign network as a finished stage, or checks a finished network.

python -m distill_jax.teachers google_research cifar_original --out=teachers/cifar
python -m distill_jax.teachers edm edm-cifar10-32x32-cond-vp.pkl --out=teachers/edm_cifar
python -m distill_jax.teachers adm mine.pt --key=ema --set side=32 --set heads=4 --out=teachers/mine
python -m distill_jax.teachers safetensors x.safetensors --config=configs/digits_swd.py --out=runs/x
python -m distill_jax.teachers examples.my_teacher:npz my.npz --config=FILE.py --out=teachers/mine
python -m distill_jax.teachers diffusers stable-diffusion-v1-5 --out=teachers/sd15
python -m distill_jax.teachers check teachers/cifar
python -m distill_jax.teachers check teachers/sd15 --pipeline=stable-diffusion-v1-5
"""

import jax
from absl import flags
from etils import epath

from distill_jax.evaluation import pictures
from distill_jax.runtime import logging
from distill_jax.runtime.app import run_app
from distill_jax.runtime.config_file import define_config
from distill_jax.runtime.options import MAX_NUM, MAX_STEPS
from distill_jax.runtime.registry import EVERYTHING, lookup
from distill_jax.sampling.loading import load
from distill_jax.sampling.student import Student
from distill_jax.teachers import TEACHERS, checks, importing
from distill_jax.teachers.given import KEY, parse

_OUT = flags.DEFINE_string("out", None, "Directory to write the network to.")
_CONFIG = define_config("Config that describes the network, if the checkpoint does not.")
_SET = flags.DEFINE_multi_string(
    "set", [], "KEY=VALUE, repeated: a fact about the network that the checkpoint does not contain."
)
_KEY = flags.DEFINE_string("key", None, "Entry of the checkpoint that is the network, such as ema.")
_BASE = flags.DEFINE_multi_string(
    "base", [], "check: a network in another workdir whose weights the adapters may change."
)
_ALLOW = flags.DEFINE_multi_string(
    "allow", [], "check: code, package.module:Name, that is imported if the network names it."
)
_PIPELINE = flags.DEFINE_multi_string(
    "pipeline", [], "check: the pipeline of diffusers that the network was read from."
)
_PROMPT = flags.DEFINE_multi_string(
    "prompt", [*checks.PROMPTS], "check: a prompt of images, for a network with captions."
)
_NUM = flags.DEFINE_integer(
    "num", 16, "check: images in the grid.", lower_bound=1, upper_bound=MAX_NUM
)
_NUM_STEPS = flags.DEFINE_integer(
    "num_steps", 16, "check: DDIM steps at most.", lower_bound=1, upper_bound=MAX_STEPS
)

COLUMNS = 8
TOLERANCE = 1e-4  # Rounding of float32 after a division by sigma or alpha at the checked times.


def main(what: str, source: str) -> None:
    """Runs the command line: "check" and a directory, or a format and a file."""
    if what == "check":
        check(epath.Path(source))
    else:
        convert(what, epath.Path(source))


def convert(kind: str, source: epath.Path) -> None:
    """Reads a foreign checkpoint and writes it as a finished stage."""
    lookup({**TEACHERS, "check": check}, "format", kind, EVERYTHING)
    if not _OUT.value:
        raise ValueError("--out is needed: the directory to write the network to")
    config = None if _CONFIG.value is None else _CONFIG.value.to_dict()
    given = parse(_SET.value) | ({} if _KEY.value is None else {KEY: _KEY.value})
    final = importing.convert(kind, source, _OUT.value, config, given)
    if kind == "edm" and "init_sigma" not in given:
        logging.say(
            "read as a teacher; a one-call student of SiD has the same kind of file: import it "
            "with the noise level of its call, such as --set init_sigma=2.5"
        )
    pipeline = f" --pipeline={source}" if kind == "diffusers" else ""
    logging.say(f"wrote {final}; next: python -m distill_jax.teachers check {_OUT.value}{pipeline}")


def check(directory: epath.Path) -> None:
    """Prints the description of a network, checks its predictions, and draws a grid of samples."""
    student = load(directory, parts=_BASE.value + _PIPELINE.value, allow=_ALLOW.value)
    logging.show(checks.describe(student))
    deviation = checks.deviation(student, jax.random.key(0))
    if deviation > TOLERANCE:
        raise ValueError(
            f"z differs from alpha x + sigma eps by {deviation:.1e}, more than {TOLERANCE:g}: "
            "parameterization and schedule do not fit each other"
        )
    logging.show(
        f"\nfinite; z = alpha x + sigma eps to {deviation:.0e}; {_drawn(student, directory)}"
    )


def _drawn(student: Student, directory: epath.Path) -> str:
    """Draws a grid of samples; returns its place, or in words why there is none."""
    if lacks := checks.lacks(student):
        return f"no samples: {lacks}"
    if flags.FLAGS["prompt"].present and not student.takes_prompts:
        raise ValueError("--prompt is given, and this network was trained without captions")
    prompts = _PROMPT.value if student.takes_prompts else []
    x = checks.draw(student, _NUM.value, _NUM_STEPS.value, prompts)
    facts = {"prompts": "\n".join(prompts)} if prompts else None
    pictures.save_grid(grid := directory / "grid.png", x, min(COLUMNS, len(x)), facts=facts)
    return f"samples: {grid}"


if __name__ == "__main__":
    run_app(main, "FORMAT", "SOURCE")
