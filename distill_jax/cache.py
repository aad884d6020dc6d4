"""Encodes the images and captions of a config's data once, for any number of runs.

python -m distill_jax.cache --config=configs/shapes_guided.py --out=caches/shapes
python -m distill_jax.main --config=configs/shapes_guided.py --config.cache.path=caches/shapes
"""

from absl import flags

from distill_jax.models.build import matmul_precision
from distill_jax.run import pipeline, plan
from distill_jax.run.caching import keep_programs
from distill_jax.run.lock import hold
from distill_jax.runtime import distributed, heartbeat, logging
from distill_jax.runtime.app import needed, run_app
from distill_jax.runtime.config_file import define_config
from distill_jax.runtime.files import absolute
from distill_jax.runtime.preemption import StopFlag


def define_flags() -> None:
    """Defines the flags of the command; not at import, because commands share flag names."""
    define_config("Config file, FILE.py or FILE.py:size.")
    flags.DEFINE_string(
        "out", None, "Directory of the cache, and of a codec and text encoder that are fitted."
    )
    flags.DEFINE_string("heartbeat", None, "Local file to touch at each sign of progress.")
    flags.DEFINE_float(
        "stall_minutes",
        0.0,
        "End with exit code 75 after so many minutes without progress, 0 never.",
        lower_bound=0.0,
    )
    distributed.define_flags()


def main() -> int:
    """Fills the cache; returns the exit code: 0, or 128 + n if signal n stopped the command."""
    values = flags.FLAGS
    needed("config", ", such as --config=configs/shapes_guided.py")
    out = absolute(needed("out", ": the directory of the cache"))
    distributed.join()
    config = values.config
    if config.cache.path:
        raise ValueError(
            f"config.cache.path is {config.cache.path!r}; --out is the place: leave it out"
        )
    run = plan.make(config, out)
    if run.cache is None:
        raise ValueError(
            "the config names neither a codec nor a conditioner, so there is nothing to encode"
        )
    if "://" in str(out):
        raise ValueError(f"--out={out} is in a bucket; expected a directory on a disk")
    if not run.cache.shards:
        raise ValueError(
            "the dataset lacks the methods of data.base.Encodable, so its images are encoded when "
            "they are drawn"
        )
    keep_programs()
    heartbeat.watch(values.heartbeat, values.stall_minutes)
    stop = StopFlag().install()
    try:
        with hold(out) as lock, matmul_precision(config.matmul_precision):
            fitted = pipeline.finish_fits(run, stop, lock)
            _, filled = pipeline.fill_cache(run, stop, lock)
    except (InterruptedError, KeyboardInterrupt) as error:
        logging.say(f"{str(error) or 'stopped'}. The same command goes on from there.")
        return 128 + (stop.signal or 2)
    if not (fitted or filled):
        logging.say(f"nothing left to do: {run.cache.directory} is complete")
    return 0


if __name__ == "__main__":
    define_flags()
    run_app(main)
