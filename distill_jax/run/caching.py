"""The persistent cache of compiled programs."""

import jax

from distill_jax.runtime import logging
from distill_jax.runtime.files import private_folder


def keep_programs() -> None:
    """Caches compiled programs in JAX_COMPILATION_CACHE_DIR, or else in the user's own folder.

    JAX runs what it finds there. A folder that another user can write is therefore not used, and
    neither is a workdir, which may come from elsewhere; one line says so and nothing is cached.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    try:
        jax.config.update("jax_compilation_cache_dir", str(private_folder("compilation")))
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home.
        advice = "or set JAX_COMPILATION_CACHE_DIR to a folder that you trust"
        logging.say(f"compiled programs are not cached: {error}, {advice}")
