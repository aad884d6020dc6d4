"""The end of a stage: writes final/, the weights and everything needed to sample from them."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from distill_jax.run.data import record
from distill_jax.run.plan import Run
from distill_jax.run.stages import Stage
from distill_jax.sampling.loading import find_final
from distill_jax.sampling.manifest import Adapters, Lineage, Manifest, Reference
from distill_jax.storage import checkpoint
from distill_jax.typing import Tree

# Keys of a config that a manifest copies.
MANIFEST_KEYS = ("schedule", "parameterization", "matmul_precision", "data")


def finish(
    run: Run, stage: Stage, weights: Tree, fake: Tree | None, best: Mapping[str, Any] | None = None
) -> None:
    """Writes final/: the weights, everything needed to sample from them, and the fake's weights.

    `best` is the record of the iteration that the weights are from, if that is not the last.
    """
    content = manifest(run, stage, best).to_json()
    checkpoint.save_final(stage.directory / "final", weights, content, fake)


def manifest(run: Run, stage: Stage, best: Mapping[str, Any] | None = None) -> Manifest:
    """Returns the manifest of a stage, whose teacher, base and codec are finished."""
    spec, final = stage.spec, stage.directory / "final"
    config = json.loads(run.config.to_json())
    method = {"name": spec.method.name, **dataclasses.asdict(stage.method)}  # type: ignore[call-overload]  # Methods are dataclasses.
    lineage = Lineage(
        method,
        _relative(stage.teacher.directory, final) if stage.teacher else None,
        _relative(stage.start.directory, final) if spec.init else None,
        _relative(stage.fake_start.directory, final) if stage.fake_start else None,
        spec.steps,
        config=config,
        data=record(run.dataset),
    )
    adapters, roles = None, stage.roles
    if roles.trained.base:
        base = _reference(stage.under.directory, final)
        adapters = Adapters(base, roles.trained.rank, roles.full)
    return Manifest(
        stage=stage.name,
        trained=stage.trained,
        distilled=stage.method.needs_teacher or stage.onto is not None,
        spec=run.dataset.spec,
        model=stage.model,
        lineage=lineage,
        adapters=adapters,
        codec=_reference(run.codec.directory, final) if run.codec else None,
        best=best,
        conditioner=_reference(run.conditioner.directory, final) if run.conditioner else None,
        **{key: config[key] for key in MANIFEST_KEYS},
    )


def _reference(directory: epath.Path, start: epath.Path) -> Reference:
    return Reference(_relative(directory, start), checkpoint.fingerprint(find_final(directory)))


def _relative(directory: epath.Path, start: epath.Path) -> str:
    """Returns the path of final/, relative to `start` if both are in one movable workdir."""
    path = find_final(directory)
    if path.parent.parent == start.parent.parent:
        return f"../../{path.parent.name}/{path.name}"
    return str(path)
