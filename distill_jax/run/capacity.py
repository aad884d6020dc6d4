"""Settings with which the updates of a run fit into the memory of common devices.

The bytes are the estimate of `costs` for other settings. Nothing is compiled, and the network is
traced again only for another `remat`.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax

from distill_jax.models.build import make_network, rounded
from distill_jax.models.layers import REMAT
from distill_jax.run.costs import Cost, activations, cost_with, traced
from distill_jax.run.plan import Run
from distill_jax.run.stages import Stage
from distill_jax.runtime.registry import EVERYTHING
from distill_jax.runtime.sharding import make_layout

SIZES = (16, 40, 80)  # Memory of devices, in 10^9 bytes.
MAX_DEVICES = 1024


class Setting(NamedTuple):
    """The settings that decide how much memory an update takes.

    Attributes:
      devices: number of devices.
      remat: option of the network; "" for a network whose config has no such option.
      frozen: dtype of frozen networks.
      fsdp: devices that share the parameters.
      microbatches: parts of a batch.
    """

    devices: int
    remat: str
    frozen: str
    fsdp: int
    microbatches: int

    def changes(self, other: "Setting") -> int:
        """Returns the number of settings that differ."""
        return sum(a != b for a, b in zip(self, other, strict=True))


def show(run: Run, costs: Mapping[str, Cost]) -> Iterator[str]:
    """Yields a line for each of SIZES that is too small for the stage that needs most.

    The setting is the first that fits: without recomputed activations if that is enough, then with
    the fewest changes, and with more devices only if nothing else fits.
    """
    needs = {name: total(cost) for name, cost in costs.items()}
    name = max(needs, key=lambda name: needs[name])
    stage = next(stage for stage in run.stages if stage.name == name)
    estimates = _Estimates(run, stage, costs[name])
    for size in SIZES:
        if needs[name] > size * 1e9:
            found = estimates.find(int(size * 1e9))
            what = estimates.flags(found) if found else f"no setting on up to {MAX_DEVICES} devices"
            yield f"{name} fits {size:g} GB (10^9 bytes) with {what}"


def total(cost: Cost) -> int:
    """Returns the bytes on each device in an update."""
    return sum(cost.kept.values()) + sum(cost.step.values())


class _Estimates:
    """The bytes of a stage's update by Setting, each computed once.

    Args:
      run: the run.
      stage: one of its stages.
      cost: cost of the stage.
    """

    def __init__(self, run: Run, stage: Stage, cost: Cost):
        mesh, config = run.layout.mesh, run.config
        remat = stage.model.get("remat", "")
        self._run, self._stage, self._tensor = run, stage, mesh.shape["tensor"]
        self._per_image = {remat: cost.per_image}
        self._fixed: dict[tuple, int] = {}
        own = mesh.shape["fsdp"], config.microbatches
        self._now = Setting(mesh.size, remat, config.frozen_dtype, *own)

    def find(self, most: int) -> Setting | None:
        """Returns the best setting with at most so many bytes on each device; None without one."""
        now, frozen = self._now, [self._now.frozen]
        if len(self._stage.shapes) > len(self._stage.method.phases):
            frozen = [*dict.fromkeys((now.frozen, "bfloat16"))]
        policies = [*REMAT][[*REMAT].index(now.remat) :] if now.remat else [""]
        devices = now.devices
        while devices <= MAX_DEVICES:
            ways, rows = devices // self._tensor, self._rows(devices)
            shards = [n for n in range(now.fsdp, ways + 1) if ways % n == 0]
            parts = [n for n in range(min(now.microbatches, rows), rows + 1) if rows % n == 0]
            for remat in policies:
                rest = itertools.product(frozen, shards, parts)
                tried = [Setting(devices, remat, *each) for each in rest]
                if self._bytes(tried[-1]) <= most:  # It needs least.
                    tried.sort(key=lambda s: (s.changes(now), s.microbatches, s.fsdp))
                    return next(each for each in tried if self._bytes(each) <= most)
            devices *= 2
        return None

    def _bytes(self, setting: Setting) -> int:
        """Returns the bytes on each device in an update."""
        rows = self._rows(setting.devices) // setting.microbatches
        return self._without_activations(setting) + rows * self._of_an_image(setting.remat)

    def flags(self, setting: Setting) -> str:
        """Returns the changed settings as flags."""
        now, ways = self._now, setting.devices // self._tensor
        pairs = (
            ("frozen_dtype", now.frozen, setting.frozen),
            ("mesh.fsdp", now.fsdp, setting.fsdp),
            ("microbatches", now.microbatches, setting.microbatches),
            ("model.remat", now.remat, setting.remat),
            ("batch_size", self._stage.batch_size, ways * self._rows(setting.devices)),
        )
        text = " ".join(f"--config.{key}={new}" for key, old, new in pairs if new != old)
        more = f" on {setting.devices} devices" if setting.devices != now.devices else ""
        return text + more

    def _rows(self, devices: int) -> int:
        """Returns the examples of a device, for the smallest batch that it can have part of."""
        return -(-self._stage.batch_size // (devices // self._tensor))

    def _without_activations(self, setting: Setting) -> int:
        """Returns the bytes that do not depend on the batch."""
        key = setting.devices, setting.fsdp, setting.frozen
        if key not in self._fixed:
            ways = setting.devices // self._tensor
            sizes = {"data": ways // setting.fsdp, "fsdp": setting.fsdp, "tensor": self._tensor}
            layout = make_layout(sizes, setting.devices)
            stage, trained = self._stage, {phase.trains for phase in self._stage.method.phases}
            shapes = {
                role: tree
                if role in trained
                else jax.eval_shape(lambda params: rounded(params, setting.frozen), tree)
                for role, tree in stage.shapes.items()
            }
            run = dataclasses.replace(self._run, layout=layout)
            roles = dataclasses.replace(stage.roles, layout=layout)
            size = ways * self._rows(setting.devices)
            stage = dataclasses.replace(stage, shapes=shapes, roles=roles, batch_size=size)
            self._fixed[key] = total(cost_with(run, stage, 0))
        return self._fixed[key]

    def _of_an_image(self, remat: str) -> int:
        """Returns the bytes of the activations of an example."""
        if remat not in self._per_image:
            run, stage = self._run, self._stage
            described = {**run.config.to_dict(), "model": {**stage.model, "remat": remat}}
            student = make_network(described, run.dataset.spec, EVERYTHING)
            roles = dataclasses.replace(stage.roles, student=student)
            traces = traced(run, dataclasses.replace(stage, roles=roles))
            self._per_image[remat] = activations(traces, stage.batch_size)
        return self._per_image[remat]
