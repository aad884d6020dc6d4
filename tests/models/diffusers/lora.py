"""What make_lora.py and the tests of LoRAs share: recorded_lora.npz is what diffusers gave."""

import zlib

import numpy as np

from tests.models.diffusers import SCHEDULER, SIZES

RANK = 2
LCM = {
    **SCHEDULER,
    "_class_name": "LCMScheduler",
    "original_inference_steps": 1000,
    "timestep_scaling": 1e4,
    # With a terminal SNR of zero, our alpha(1) is 4.5e-5.
    "rescale_betas_zero_snr": False,
}
EPS = {**LCM, "prediction_type": "epsilon"}
# Schedulers of students of the network "sd1", and their times.
STUDENTS = {
    "eps": (EPS, (1.0, 0.75, 0.5)),
    "later": (EPS, (0.625, 0.25)),
    "v": (LCM, (1.0, 0.7)),
}


def lora_weights(name, shape):
    """Returns random weights of a LoRA for an array with a name of PEFT."""
    x = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
    return np.asarray(0.2 * x / np.sqrt(x[0].size), np.float32)


def noise(call):
    """Returns the noise (2, 8, 8, 4) before a call of a student."""
    return np.random.default_rng(call).normal(size=(*SIZES[0], 4)).astype(np.float32)
