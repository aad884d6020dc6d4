"""Makes recorded_sdxl.npz: outputs of diffusers' UNet of SDXL; see make.py for the packages."""

import pathlib
import sys

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

sys.path.insert(0, str(pathlib.Path(__file__).parents[3]))
from tests.models.diffusers import SIZES  # noqa: E402
from tests.models.diffusers.make import HERE, filled, nchw, nhwc  # noqa: E402
from tests.models.diffusers.sdxl import SDXL, arguments, weights  # noqa: E402


def sdxl():
    """Returns outputs for sizes of the image that the pipeline takes where the user gives none."""
    network, names = filled(UNet2DConditionModel(**SDXL), weights)
    found = {"sdxl_names": names}
    pipeline = StableDiffusionXLPipeline(*[None] * 5, network, None, add_watermarker=False)
    for number, sizes in enumerate(SIZES):
        z, k, text, pooled = map(torch.tensor, arguments(sizes))
        original = (sizes[1] * pipeline.vae_scale_factor, sizes[2] * pipeline.vae_scale_factor)
        ids = pipeline._get_add_time_ids(
            original, (0, 0), original, text.dtype, text_encoder_projection_dim=pooled.shape[-1]
        )
        added = {"text_embeds": pooled, "time_ids": ids.repeat(len(z), 1)}
        given = (nchw(z.numpy()), k, text)
        found[f"sdxl_{number}"] = nhwc(network(*given, added_cond_kwargs=added).sample)
        found[f"sdxl_ids_{number}"] = ids[0].numpy()
    return found


if __name__ == "__main__":
    with torch.no_grad():
        np.savez_compressed(HERE / "recorded_sdxl.npz", **sdxl())
