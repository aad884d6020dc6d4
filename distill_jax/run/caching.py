"""The persistent cache of compiled programs."""

import os
import pathlib

import jax

from distill_jax.runtime import logging


def keep_programs() -> None:
    """Caches compiled programs in JAX_COMPILATION_CACHE_DIR, or else in the user's own folder.

    JAX runs what it finds there. A folder that another user can write is therefore not used, and
    neither is a workdir, which may come from elsewhere; one line says so and nothing is cached.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    try:
        jax.config.update("jax_compilation_cache_dir", str(_private_folder()))
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home.
        logging.say(f"compiled programs are not cached: {error}")


def _private_folder() -> pathlib.Path:
    """Returns distill_jax/compilation in XDG_CACHE_HOME or ~/.cache, created for its owner only.

    Raises:
      OSError: if it cannot be created, belongs to another user, or others can write to it.
    """
    given = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = given if given.is_absolute() else pathlib.Path.home() / ".cache"
    for name in ("distill_jax", "compilation"):
        folder /= name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise PermissionError(
                f"{folder} belongs to another user, or others can write to it; remove it, run "
                f"chmod 700 {folder}, or set JAX_COMPILATION_CACHE_DIR to a folder that you trust"
            )
    return folder
