"""The persistent cache of compiled programs."""

import jax
from etils import epath


def keep_programs(workdir: epath.Path) -> None:
    """Caches compiled programs in WORKDIR/compilation_cache, or in JAX_COMPILATION_CACHE_DIR."""
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compilation_cache"))
