"""Prints what runs measured beside what papers published, with protocols, hours and costs.

python -m distill_jax.report runs/digits_guided --w=1
python -m distill_jax.report configs/cifar10_guided.py runs/cifar10_sid --out=table.md

An argument is the workdir of a run, finished or not, or a config that was not run.
"""

import json
import pathlib

from absl import flags

from distill_jax.evaluation import beside, records
from distill_jax.runtime import logging
from distill_jax.runtime.app import cause_of, numbers, run_app
from distill_jax.runtime.config_file import check_config_file, explain, load_file
from distill_jax.runtime.files import absolute, replace


def define_flags() -> None:
    """Defines the flags of the command; not at import, because commands share flag names."""
    flags.DEFINE_list("w", None, "Guidance strengths of the measured rows, by default all.")
    flags.DEFINE_string("out", None, "Also write the tables to this file, in Markdown.")


def of_file(path: str) -> records.Record:
    """Returns the record of a config, FILE.py or FILE.py:size, that was not run.

    Raises:
      ValueError: for a file that does not exist or has an error, and for a size that it lacks.
    """
    file, _, size = path.partition(":")
    check_config_file(file)
    try:
        module = load_file(file)
        config = module.get_config(size) if size else module.get_config()
        content = json.loads(config.to_json())
    except Exception as error:  # Any, because the file is the user's own code.
        raise ValueError(explain(error, file) or f"{file}: {cause_of(error)}") from error
    return records.of_config(content, pathlib.Path(file).stem + (f":{size}" if size else ""))


def main(*runs: str) -> None:
    """Prints the tables of runs and configs, and writes --out."""
    values = flags.FLAGS
    found = [
        of_file(run) if run.partition(":")[0].endswith(".py") else records.of_workdir(absolute(run))
        for run in runs
    ]
    text = beside.show(found, numbers("w"))
    logging.show(text)
    if values.out:
        out = absolute(values.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        replace(out, f"{text}\n".encode())


if __name__ == "__main__":
    define_flags()
    run_app(main, "RUN...")
