"""Handwritten digits, 8x8: a one-call student of nine digits learns the tenth, and keeps its call.

The student of 0 to 8 is first trained to denoise its own images. That network is fine-tuned on
images of all ten, and the change is added to the student: Ilharco et al. (2022, arXiv:2212.04089).
Its images of 0 to 8 are kept: Li & Hoiem (2016, arXiv:1606.09282). `plain` is the control, a
fine-tuning of the student itself without that. `:ten` distils all ten from the start. The papers
have no students of few steps; weights, learning rates and updates are ours.

    launch/local.sh --config=configs/digits_dedistill.py            # nine digits, minutes on a CPU
    launch/local.sh --config=configs/digits_dedistill.py:learn      # then the tenth; needs that run
    launch/local.sh --config=configs/digits_dedistill.py:smoke      # seconds; draws noise
"""

from distill_jax.config import MATCHING, check_size, digits, digits_teacher, pipeline, smoke, stage

NINE = "runs/digits_dedistill"
SID = dict(steps=1000, learning_rate=2e-4, ema_decay=0.995, fake_updates=2, **MATCHING)
RATES = dict(learning_rate=5e-4, ema_decay=0.99)
KEEP = dict(keep_weight=1.0, keep_labels=tuple(range(9)))
LEARN = dict(steps=600, label_dropout=0.0, learning_rate=3e-3, ema_decay=0.99, lora=8)


def get_config(size="full"):
    """Returns the chain teacher -> one call -> its denoiser, or the stages that learn from it."""
    check_size(size, "full", "learn", "ten", "smoke")
    config = digits(name="mlp", width=128, blocks=3, expand=2)
    config.evaluate.w = (0.0,)
    nine = digits_teacher(), stage("sid", "sid_lsg", **SID)
    nine += (stage("dedistill", "dedistill", steps=1500, **RATES),)
    where = (
        ("sid", "dedistill") if size == "smoke" else (f"{NINE}/s01_sid", f"{NINE}/s02_dedistill")
    )
    learn = (
        stage("learned", "diffusion", teacher=where[1], onto=where[0], **LEARN, **KEEP),
        stage("plain", "diffusion", teacher=where[0], onto=where[0], **LEARN),
    )
    chains = {"full": nine, "learn": learn, "ten": nine[:2], "smoke": nine + learn}
    config.stages = pipeline(*chains[size])
    if size == "full":
        config.data.labels = tuple(range(9))
    return smoke(config, width=32, blocks=1) if size == "smoke" else config
