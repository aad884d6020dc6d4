"""Numbers and claims of papers, each number with the protocol that it belongs to.

A config names its entry of PUBLISHED as config.published. A field that a source does not state is
None, and what is known only from memory or at second hand says so.
"""

from typing import NamedTuple

SAMPLES, TRAIN = 50_000, "{:,} training images"  # The customary number of samples, and reference.

INCEPTION = "6726825d"  # Of FID's weights: pt_inception-2015-12-05-6726825d.pth.


class Protocol(NamedTuple):
    """The measure of a number and its data; a field that a source does not state is None.

    Attributes:
      metric: name of the metric: FID only in Inception's features, else such as FD-digits.
      dataset: name of the dataset, and the side of its images where it can be chosen.
      num: number of samples.
      reference: what the samples are compared with, in words.
    """

    metric: str
    dataset: str
    num: int | None = None
    reference: str | None = None

    def accepts(self, measured: "Protocol", size: int) -> bool:
        """Returns whether a number measured by a protocol may stand beside one of this protocol.

        What this protocol does not state must be as is customary: 50,000 samples, compared with all
        training images.

        Args:
          measured: protocol of the other number.
          size: number of training images of the dataset.
        """
        wanted = self._replace(
            num=self.num or SAMPLES, reference=self.reference or TRAIN.format(size)
        )
        return measured == wanted

    def __str__(self) -> str:
        num = "samples not stated" if self.num is None else f"{self.num:,} samples"
        return f"{self.dataset}, {num}, {self.reference or 'reference not stated'}"


class Number(NamedTuple):
    """A value with its metric and protocol; its text always has the name of the metric."""

    value: float
    protocol: Protocol

    def __str__(self) -> str:
        digits = ".2f" if self.protocol.metric in ("FID", "IS") else ".3g"
        return f"{self.protocol.metric} {self.value:{digits}}"


class Published(NamedTuple):
    """A published number.

    Attributes:
      stage: name of the stage of a config that reproduces it, such as n0001.
      steps: sampling steps; None if they are not stated.
      w: guidance strength; None if it is not stated.
      number: the number.
      source: table of the paper, or where else it was read.
      unsure: fields above that are from memory.
    """

    stage: str
    steps: int | None
    w: float | None
    number: Number
    source: str
    unsure: tuple[str, ...] = ()


class Publication(NamedTuple):
    """The numbers of a paper for one dataset.

    Attributes:
      method: the method, and the network that the paper trained.
      paper: authors, year and arXiv number.
      size: number of training images of the dataset.
      numbers: the numbers; () if none is known.
      note: what a reader must know, such as why there are no numbers.
    """

    method: str
    paper: str
    size: int
    numbers: tuple[Published, ...] = ()
    note: str = ""


class Claim(NamedTuple):
    """A claim about costs; `column` is the column of the table of costs that it is about."""

    paper: str
    subject: str
    column: str
    text: str


CIFAR10, IMAGENET64 = "cifar10 32x32", "imagenet2012 64x64"
SIZES = {CIFAR10: 50_000, IMAGENET64: 1_281_167}  # Training images.
PROGRESSIVE = "Salimans & Ho 2022, arXiv:2202.00512"
GUIDED = "Meng et al. 2023, arXiv:2210.03142"
SID = "Zhou et al. 2024, arXiv:2404.04057"
DMD2 = "Yin et al. 2024, arXiv:2405.14867"
SWD = "Starodubcev et al. 2025, arXiv:2503.16397"


def _rounds(dataset: str, source: str, values: dict[int, float]) -> tuple[Published, ...]:
    """Returns FIDs of progressive distillation without guidance, by number of steps."""
    fid = Protocol("FID", dataset)
    return tuple(
        Published(f"n{steps:04d}", steps, 0.0, Number(value, fid), source)
        for steps, value in values.items()
    )


def _guided(dataset: str, value: float, w: float | None) -> Publication:
    """Returns the FID of guided distillation in one step, as another paper quotes it."""
    source = "As quoted by DMD (Yin et al. 2024, arXiv:2311.18828), Tables 1 and 6, without its w"
    number = Number(value, Protocol("FID", dataset))
    unsure = () if w is None else ("w",)
    numbers = (Published("n0001", 1, w, number, source, unsure),)
    return Publication("guided distillation, UNet", GUIDED, SIZES[dataset], numbers)


_TEACHER = "Table 1 of the ICLR submission: x, truncated SNR, DDIM; mean of 3 seeds"
_README = "Readme of the released code, "
_SID_BEST = f"{_README}best alpha (1.2)"
_DMD2 = Protocol("FID", IMAGENET64, SAMPLES, "EDM's imagenet-64x64.npz")
_SID = Protocol("FID", CIFAR10, SAMPLES, TRAIN.format(50_000))

PUBLISHED = {
    "salimans_2022/cifar10": Publication(
        "progressive distillation, unconditional UNet",
        PROGRESSIVE,
        50_000,
        (
            Published("teacher", None, 0.0, Number(2.51, Protocol("FID", CIFAR10)), _TEACHER),
            Published("teacher", None, 0.0, Number(9.58, Protocol("IS", CIFAR10)), _TEACHER),
            *_rounds(
                CIFAR10,
                "Table 2 of the ICLR submission: mean of 4 seeds",
                {8: 2.57, 4: 3.00, 2: 4.51, 1: 9.12},
            ),
        ),
    ),
    "salimans_2022/imagenet64": Publication(
        "progressive distillation, class-conditional UNet",
        PROGRESSIVE,
        SIZES[IMAGENET64],
        _rounds(
            IMAGENET64,
            "Read off the figure fid_steps_graph.png of the released code, to about 0.03",
            {8: 2.95, 4: 3.89, 2: 7.36, 1: 16.06},
        ),
    ),
    "salimans_2022/lsun128": Publication(
        "progressive distillation, UNet", PROGRESSIVE, 0, note="plots without numbers"
    ),
    "meng_2023/cifar10": _guided(CIFAR10, 5.98, None),
    "meng_2023/imagenet64": _guided(IMAGENET64, 7.54, 1.0),
    "zhou_2024/cifar10": Publication(
        "SiD, class-conditional, EDM's network and teacher",
        SID,
        50_000,
        (Published("sid", 1, 0.0, Number(1.71, _SID), _SID_BEST),),
    ),
    "zhou_2024/imagenet64": Publication(
        "SiD, class-conditional, EDM's ADM network and teacher",
        SID,
        SIZES[IMAGENET64],
        (Published("sid", 1, 0.0, Number(1.524, Protocol("FID", IMAGENET64)), _SID_BEST),),
    ),
    "yin_2024/imagenet64": Publication(
        "DMD2, EDM's ADM network and teacher",
        DMD2,
        SIZES[IMAGENET64],
        (
            Published("dmd2", 1, 0.0, Number(2.61, _DMD2), f"{_README}without the GAN"),
            Published("gan", 1, 0.0, Number(1.28, _DMD2), f"{_README}resumed from 2.61"),
        ),
    ),
    "yin_2024/imagenet64_one_stage": Publication(
        "DMD2, EDM's ADM network and teacher",
        DMD2,
        SIZES[IMAGENET64],
        (Published("gan", 1, 0.0, Number(1.51, _DMD2), f"{_README}GAN from the start"),),
    ),
}
# Claims by the method of a stage.
CLAIMS = {
    "progressive": (
        Claim(PROGRESSIVE, "distillation to 4 steps", "cost / teacher's training", "at most 1"),
    ),
    "guided": (
        Claim(GUIDED, "pixels, as few as 4 steps", "times faster", "up to 256"),
        Claim(GUIDED, "latents, 1 to 4 steps", "times faster", "at least 10"),
    ),
    "dmd2": (Claim(DMD2, "1 step on ImageNet 64x64", "times faster", "500 (inference cost)"),),
    "swd": (Claim(SWD, "all steps, small to large", "time in full-size calls", "about 2"),),
}


def headline(name: str) -> str:
    """Returns the numbers of an entry of PUBLISHED in one line."""
    entry = PUBLISHED[name]
    numbers = [f"{each.number} {_where(each)}" for each in entry.numbers]
    return f"{entry.paper}: {', '.join(numbers) or entry.note}"


def _where(number: Published) -> str:
    """Returns the stage, or its steps and w, in words."""
    if number.steps is None:
        return f"({number.stage})"
    w = "" if number.w == 0 else f", w {strength(number)}"
    return f"in {number.steps} {'step' if number.steps == 1 else 'steps'}{w}"


def strength(number: Published) -> str:
    """Returns w in words."""
    if number.w is None:
        return "not stated"
    return f"{number.w:g}{' (from memory)' if 'w' in number.unsure else ''}"
