"""Compares students of configs with their teachers at as many steps, at several seeds.

python benchmarks/seeds.py                        # trains runs/CONFIG_SEED first where they are not
python benchmarks/seeds.py --configs=digits_swd --seeds=0,1,2 --root=/tmp/runs
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

from distill_jax.runtime import logging

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = "digits_boot,digits_sid,digits_sid_lsg,digits_dmd2"


def run(config, seed, root):
    """Returns the report of one run, and its seconds, or - for a run that was finished before."""
    workdir, seconds = root / f"{config}_{seed}", "-"
    if not (workdir / "report.json").exists():
        path = ROOT / "configs" / f"{config}.py"
        command = [sys.executable, "-m", "distill_jax.main", f"--config={path}"]
        began = time.perf_counter()
        options = [f"--workdir={workdir}", f"--config.seed={seed}"]
        subprocess.run([*command, *options], cwd=ROOT, check=True)
        seconds = f"{time.perf_counter() - began:.0f}"
    return json.loads((workdir / "report.json").read_text()), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default=str(ROOT / "runs"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--configs", default=CONFIGS)
    options = parser.parse_args()
    rows = []
    for config in options.configs.split(","):
        for seed in options.seeds.split(","):
            report, seconds = run(config, seed, pathlib.Path(options.root))
            teachers = [row for row in report["rows"] if row["sampler"] == "teacher"]
            steps = {(row["w"], row["num_steps"]): row for row in teachers}
            for row in report["rows"]:
                if row["role"] != "student":
                    continue
                name, same = report["name"], steps[row["w"], row["num_steps"]]
                full = steps[row["w"], max(n for _, n in steps)]
                values = (row[name], same[name], row[name] / same[name], full[name])
                measures = (row["accuracy"], row["recall"], row["seconds_per_image"] * 1e6)
                shown = [f"{v:.3g}" for v in (*values, *measures)]
                rows.append(
                    (config, row["stage"], seed, f"{row['w']:g}", row["calls"], *shown, seconds)
                )
    titles = ("config", "stage", "seed", "w", "calls", "student", "teacher, same steps", "ratio")
    titles += ("teacher, all steps", "accuracy", "recall", "microseconds per image", "seconds")
    print(logging.table(titles, rows))


if __name__ == "__main__":
    main()
