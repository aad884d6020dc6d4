"""Handwritten digits, 8x8: encoders and decoders of 32 to 1 steps, for style transfer and editing.

Meng et al. (2023, arXiv:2210.03142), guided distillation and the encoder of its style transfer, on
the 1,797 real images that come with scikit-learn. Both directions start from the guided stage.

    launch/local.sh --config=configs/digits_encoder.py           # minutes on two CPU cores
    launch/local.sh --config=configs/digits_encoder.py:smoke     # seconds; draws noise
"""

from distill_jax.config import check_size, digits, digits_teacher, halvings, pipeline, smoke, stage


def get_config(size="full"):
    """Returns the config of the chain teacher -> guided -> encoders and decoders, w in [0, 4]."""
    check_size(size, "full", "smoke")
    config = digits()
    w_range = (0.0, 4.0)
    rates = {"learning_rate": 5e-4, "w_range": w_range}
    rounds = {
        "start": 32,
        "end": 1,
        "steps": {"default": 200, 4: 400, 2: 500, 1: 800},
        "teacher": "guided",
        "ema_decay": 0.98,
    }
    config.stages = pipeline(
        digits_teacher(),
        stage(
            "guided",
            "guided",
            steps=3000,
            ema_decay=0.995,
            num_steps=64,
            new=("w_embed",),
            clip_target=False,  # Encoders use its unclipped x.
            **rates,
        ),
        *halvings(**rounds, **rates, method="encoder", prefix="e"),
        *halvings(**rounds, **rates),  # Last, because `sample` loads the last stage of a workdir.
    )
    return config if size == "full" else smoke(config, width=32, blocks=1)
