"""The manifest of a finished network, which lies beside its weights."""

import dataclasses
from collections.abc import Container, Mapping
from typing import Any, NamedTuple

from etils import epath

from distill_jax.diffusion.spec import DataSpec
from distill_jax.diffusion.trained import SAMPLERS, Guidance, Sampler, Trained, name_of
from distill_jax.runtime import record
from distill_jax.runtime.app import cause_of
from distill_jax.runtime.registry import build, check_allowed, foreign
from distill_jax.sampling.fields import (
    REFERENCE,
    RULES,
    RULES_OF_ADAPTERS,
    check_fields,
    check_text,
)
from distill_jax.storage import checkpoint

FIRST_FORMAT = 3  # Manifests of older formats have a training method and no sampler.
PACKAGES = ("jax", "flax", "optax")
PARTS = ("codec", "conditioner")  # Fields that refer to other directories.


@dataclasses.dataclass(frozen=True)
class Lineage:
    """The origin of a network, as text for people; no code depends on it.

    Attributes:
      method: name and options of its training method.
      parent: final/ of its teacher, relative within one workdir; None without a teacher.
      init: final/ of the network that it was initialised from, if that is not the teacher.
      init_fake: final/ of the network whose fake its fake was initialised from.
      updates: iterations of its stage; None if unknown.
      source: file, format and hash of an imported network.
      versions: versions of the packages that wrote it, and their commit.
      config: config of its run.
      data: fingerprint and counts of the data of its run.
    """

    method: Mapping[str, Any]
    parent: str | None = None
    init: str | None = None
    init_fake: str | None = None
    updates: int | None = None
    source: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {**record.versions(PACKAGES), "commit": record.commit()}
    )
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Reference(NamedTuple):
    """A reference to another finished network or codec that a network needs.

    Attributes:
      path: its final/, relative within one workdir.
      fingerprint: fingerprint of its parameters.
    """

    path: str
    fingerprint: int


class Adapters(NamedTuple):
    """A description of weights that are low-rank adapters of another finished network.

    Attributes:
      base: reference to that network.
      rank: rank of the adapters.
      full: names of modules that are stored in full instead.
    """

    base: Reference
    rank: int
    full: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The description of a finished network, everything but its weights.

    Attributes:
      stage: name of its stage.
      trained: its sampler, its guidance, and the times and sizes it was trained at.
      distilled: whether it is a student, whose parent is the teacher.
      spec: spec of its inputs.
      model: {"name": an entry of NETWORKS, **options}.
      schedule: {"name": an entry of SCHEDULES, **options}.
      parameterization: name in PARAMETERIZATIONS.
      data: dataset of its run, as in a config; None if unknown.
      lineage: see Lineage.
      matmul_precision: precision in training, see models.build.matmul_precision.
      metrics: measured quality, with the name of the protocol.
      fake: fingerprint of the fake network beside it; None without one.
      adapters: see Adapters; None if all weights are stored.
      codec: reference to its codec; None for a network on pixels.
      best: iteration, metric, value and protocol of the weights, if they are the best that were
        measured in training; None for those of the last iteration.
      conditioner: reference to its text encoder; None for a network without captions.
      posthoc: sigma_rel, iteration, snapshots and error of an average that was reconstructed after
        training, see run.snapshots; None for others.
    """

    stage: str
    trained: Trained
    distilled: bool
    spec: DataSpec
    model: Mapping[str, Any]
    schedule: Mapping[str, Any]
    parameterization: str
    data: Mapping[str, Any] | None
    lineage: Lineage
    matmul_precision: str = "default"
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fake: int | None = None
    adapters: Adapters | None = None
    codec: Reference | None = None
    best: Mapping[str, Any] | None = None
    conditioner: Reference | None = None
    posthoc: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the manifest as plain data, in the order of the fields."""
        trained, fields = self.trained, dataclasses.asdict(self)
        name = {"name": name_of(type(trained.sampler))}
        fields["trained"] = {
            **trained._asdict(),
            "sampler": {**name, **dataclasses.asdict(trained.sampler)},  # type: ignore[call-overload]  # Samplers are dataclasses.
            "guidance": trained.guidance._asdict(),
        }
        fields["spec"] = self.spec.to_json()
        if self.adapters:
            base = self.adapters.base._asdict()
            fields["adapters"] = {**self.adapters._asdict(), "base": base}
        for part in PARTS:
            if (reference := getattr(self, part)) is not None:
                fields[part] = reference._asdict()
        for absent in ("fake", "adapters", "best", "posthoc", *PARTS):
            if fields[absent] is None:
                del fields[absent]
        return fields

    @classmethod
    def from_json(
        cls, content: Mapping[str, Any], place: str, allow: Container[str] = ()
    ) -> "Manifest":
        """Builds the manifest from the content of its file.

        Args:
          content: the result of checkpoint.read_manifest.
          place: name of the file, for messages.
          allow: names that may be imported, see `imports`.

        Raises:
          ValueError: for an older format, a field that is missing or of the wrong type, and code
            outside the package that is not allowed.
        """
        if content["format"] < FIRST_FORMAT:
            raise ValueError(
                f"{place} has format {content['format']}, which names a training method and no "
                f"sampler; this version reads formats from {FIRST_FORMAT}: train or import the "
                "network again"
            )
        known = {field.name: field for field in dataclasses.fields(cls)}
        given = {name: content[name] for name in known if name in content}
        check_text(content, place)
        check_fields(content, RULES, place)
        if given.get("adapters") is not None:
            check_fields(given["adapters"], RULES_OF_ADAPTERS, place, "adapters.")
        parts = [part for part in PARTS if given.get(part) is not None]
        for part in parts:
            check_fields(given[part], REFERENCE, place, f"{part}.")
        try:
            named = given["trained"]["sampler"], given["model"], given["schedule"]
            check_allowed((entry["name"] for entry in named), allow)
            given["trained"] = _trained(given["trained"], allow)
            given["spec"] = DataSpec.from_json(given["spec"])
            given["lineage"] = Lineage(**given["lineage"])
            if given.get("adapters") is not None:
                base, rank, full = map(given["adapters"].get, Adapters._fields)
                given["adapters"] = Adapters(_reference(base), rank, tuple(full))
            given.update({part: _reference(given[part]) for part in parts})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{place} cannot be read: {cause_of(error)}") from error
        return cls(**given)

    @classmethod
    def read(cls, final: epath.Path, allow: Container[str] = ()) -> "Manifest":
        """Reads the manifest of a final/; raises as checkpoint.read_manifest and from_json do."""
        content = checkpoint.read_manifest(final)
        return cls.from_json(content, str(final / "manifest.json"), allow)

    @property
    def imports(self) -> tuple[str, ...]:
        """The names package.module:Name of code outside this package that it needs."""
        sampler = name_of(type(self.trained.sampler))
        return foreign((sampler, self.model["name"], self.schedule["name"]))


def _reference(content: Mapping[str, Any]) -> Reference:
    return Reference(content["path"], content["fingerprint"])


def _trained(content: Mapping[str, Any], allow: Container[str]) -> Trained:
    sampler = {key: _tuple(value) for key, value in content["sampler"].items()}
    guidance = {key: _tuple(value) for key, value in content["guidance"].items()}
    return Trained(
        build(SAMPLERS, "sampler", sampler, allow=allow, makes=Sampler),
        Guidance(**guidance),
        content["all_times"],
        content["saturated"],
        tuple(content["resolutions"]),
    )


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
