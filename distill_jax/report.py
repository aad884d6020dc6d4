"""Prints what runs measured beside what papers published, with protocols, hours and costs.

python -m distill_jax.report runs/digits_guided --w=1
python -m distill_jax.report configs/cifar10_guided.py runs/cifar10_sid --out=table.md
python -m distill_jax.report runs/digits_sid runs/digits_dmd2 --out=both.html

An argument is the workdir of a run, finished or not, or a config that was not run. Several finished
runs are compared first: a table with the runs as columns, and the differences of their configs.
Those that differ only in the seed are one column, with means and standard deviations. A page,
--out=FILE.html, has the same with pictures, curves and sliders; that of one finished run is also
written anew in its workdir, report.html.
"""

import json
import pathlib

from absl import flags
from etils import epath

from distill_jax.evaluation import beside, finished, records, report
from distill_jax.runtime import logging
from distill_jax.runtime.app import cause_of, numbers, run_app
from distill_jax.runtime.config_file import check_config_file, explain, load_file
from distill_jax.runtime.files import absolute, read_json, replace


def define_flags() -> None:
    """Defines the flags of the command; not at import, because commands share flag names."""
    flags.DEFINE_list("w", None, "Guidance strengths of the measured rows, by default all.")
    flags.DEFINE_string("out", None, "Also write a page, FILE.html, or the tables in Markdown.")


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
    values, strengths = flags.FLAGS, numbers("w")
    found, whole = [], []
    for run in runs:
        if run.partition(":")[0].endswith(".py"):
            found.append(of_file(run))
            continue
        workdir = absolute(run)
        found.append(records.of_workdir(workdir))
        if found[-1].rows:
            whole.append(finished.read(workdir, read_json(workdir / "report.json")))
    parts = [beside.show(found, strengths)]
    if len(whole) > 1:
        tables = report.comparison(whole, strengths)
        parts = [*(f"## {title}\n\n{text}" for title, text in tables), *parts]
    text = "\n\n".join(parts)
    logging.show(text)
    if values.out:
        _write(absolute(values.out), text, whole)
    elif len(runs) == len(whole) == 1:
        _write(absolute(runs[0]) / "report.html", text, whole)


def _write(out: epath.Path, text: str, whole: list[finished.Finished]) -> None:
    """Writes the page of finished runs to an .html file, or the tables to any other.

    Raises:
      ValueError: for a page without a finished run.
    """
    if out.suffix == ".html":
        if not whole:
            raise ValueError(f"--out={out} needs a run with a report; none of these has one")
        text = report.as_page(whole, numbers("w"))
    out.parent.mkdir(parents=True, exist_ok=True)
    replace(out, f"{text.rstrip()}\n".encode())


if __name__ == "__main__":
    define_flags()
    run_app(main, "RUN...")
