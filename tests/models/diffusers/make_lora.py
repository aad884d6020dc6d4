"""Makes recorded_lora.npz and recorded_flux_lora.npz: outputs of diffusers with LoRAs, for tests.

Run it in a folder of its own with the packages that are compared, from the checkout:

    python -m venv reference && . reference/bin/activate
    pip install torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 peft==0.21.2 numpy pillow
    python tests/models/diffusers/make_lora.py

Files of the export are compared with the same LoRAs, name by name and number by number:

    python tests/models/diffusers/make_lora.py unet.safetensors kohya.safetensors sd3.safetensors
"""

import json
import math
import pathlib
import sys
import tempfile

import diffusers
import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FluxPipeline,
    FluxTransformer2DModel,
    LCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.schedulers import scheduling_lcm
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(pathlib.Path(__file__).parents[3]))
from tests.models.diffusers import (  # noqa: E402
    FLUXES,
    MMDITS,
    SIZES,
    UNETS,
    VAE,
    inputs,
    mmdit_weights,
    pooled,
)
from tests.models.diffusers.lora import LCM, RANK, STUDENTS, lora_weights, noise  # noqa: E402
from tests.models.diffusers.make import HERE, filled, flux_output, nchw, nhwc  # noqa: E402 - as above.

ABSENT = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")
ABSENT_SD3 = ("text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")


def lora_of(network, prefix):
    """Returns a LoRA of layers whose matrix has more numbers than the pair, named as by PEFT."""
    found = {}
    for name, layer in network.named_modules():
        if not isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
            continue
        out, *rest = layer.weight.shape
        if RANK * (out + math.prod(rest)) < out * math.prod(rest):
            ones = [1] * (len(rest) - 1)
            shapes = {"lora_A": (RANK, *rest), "lora_B": (out, RANK, *ones)}
            for side, shape in shapes.items():
                key = f"{prefix}.{name}.{side}.weight"
                found[key] = torch.tensor(lora_weights(key, shape))
    return found


def kohya_of(state):
    """Returns a LoRA of a UNet under the names of Kohya's scripts."""
    found = {}
    for key, leaf in state.items():
        module, side, _ = key.removeprefix("unet.").rsplit(".", 2)
        place = "lora_unet_" + module.replace(".", "_")
        found[f"{place}.{'lora_down' if side == 'lora_A' else 'lora_up'}.weight"] = leaf
        found[f"{place}.alpha"] = torch.tensor(float(RANK))
    return found


def loaded(pipeline, state):
    """Loads a LoRA from a file, as users do; all of its numbers must have a place."""
    with tempfile.TemporaryDirectory() as folder:
        save_file(state, f"{folder}/lora.safetensors", {"format": "pt"})
        pipeline.load_lora_weights(f"{folder}/lora.safetensors")
    network = getattr(pipeline, "unet", None) or pipeline.transformer
    placed = [name for name, _ in network.named_parameters() if ".lora_" in name]
    assert len(placed) == sum("alpha" not in key for key in state)
    return pipeline


def unet_pipeline():
    """Returns a pipeline with the UNet "sd1"."""
    network = filled(UNet2DConditionModel(**UNETS["sd1"]))[0]
    parts = {"unet": network, "vae": filled(AutoencoderKL(**VAE))[0]}
    parts["scheduler"] = LCMScheduler.from_config(LCM)
    return StableDiffusionPipeline(**parts, requires_safety_checker=False, **dict.fromkeys(ABSENT))


def unet_output(pipeline):
    z, k, text, _ = inputs(SIZES[0], 4)
    return nhwc(pipeline.unet(nchw(z), torch.tensor(k), torch.tensor(text)).sample)


def sampled(pipeline, student):
    """Returns latents that a pipeline draws from the noise of lora.py, and its first level."""
    config, times = STUDENTS[student]
    pipeline.scheduler = scheduler = LCMScheduler.from_config(config)
    timesteps = [round(1000 * t) - 1 for t in times]
    scheduler.init_noise_sigma = float((1 - scheduler.alphas_cumprod[timesteps[0]]).sqrt())
    calls = iter(range(1, len(times)))
    # The noise between calls is drawn by this function of the scheduler's module.
    scheduling_lcm.randn_tensor = lambda *args, **kwargs: nchw(noise(next(calls)))
    factor = 2 ** (len(VAE["block_out_channels"]) - 1)
    found = pipeline(
        prompt_embeds=torch.tensor(inputs(SIZES[0], 4)[2]),
        latents=nchw(noise(0)),
        height=SIZES[0][1] * factor,
        width=SIZES[0][2] * factor,
        timesteps=timesteps,
        guidance_scale=1,
        output_type="latent",
    ).images
    return {student: nhwc(found), f"{student}_sigma": scheduler.init_noise_sigma}


def of_unet():
    """Returns outputs with a LoRA of the UNet in both styles, samples, and the LoRAs."""
    plain = unet_output(unet_pipeline())
    state = lora_of(unet_pipeline().unet, "unet")
    kohya = kohya_of(state)
    pipeline = loaded(unet_pipeline(), state)
    found = {"unet": unet_output(pipeline), "kohya": unet_output(loaded(unet_pipeline(), kohya))}
    assert np.abs(found["unet"] - plain).max() > 0.1 * np.abs(plain).max()
    for student in STUDENTS:
        found |= sampled(pipeline, student)
    return found, state, kohya


def of_flux():
    """Returns latents of a pipeline of FLUX.1 dev with a LoRA, and the shapes of the LoRA."""
    network = filled(FluxTransformer2DModel(**FLUXES["dev"]), mmdit_weights)[0]
    state = lora_of(network, "transformer")
    pipeline = FluxPipeline(
        scheduler=None,
        vae=None,
        transformer=network,
        **dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")),
    )
    loaded(pipeline, state)
    return {"transformer": flux_output(network, SIZES[0]), "transformer_names": shapes_of(state)}


def of_transformer():
    """Returns the output with a LoRA of a transformer of Stable Diffusion 3, and the LoRA."""
    network = filled(SD3Transformer2DModel(**MMDITS["sd35"]), mmdit_weights)[0]
    state = lora_of(network, "transformer")
    parts = {"transformer": network, "vae": None, "scheduler": None}
    pipeline = StableDiffusion3Pipeline(**parts, **dict.fromkeys((*ABSENT[:2], *ABSENT_SD3)))
    z, k, text, _ = inputs(SIZES[0], 4)
    given = nchw(z), torch.tensor(text), torch.tensor(pooled(SIZES[0])), torch.tensor(k + 1)
    plain = nhwc(network(*given).sample)
    loaded(pipeline, state)
    found = nhwc(network(*given).sample)
    assert np.abs(found - plain).max() > 0.1 * np.abs(plain).max()
    return found, state


def shapes_of(state):
    return json.dumps({key: tuple(leaf.shape) for key, leaf in sorted(state.items())})


def compare(files, states):
    """Raises AssertionError unless files have these arrays and no others."""
    for file, state in zip(files, states, strict=True):
        given = load_file(file)
        assert given.keys() == state.keys(), file
        assert all(torch.equal(given[key], leaf) for key, leaf in state.items()), file


if __name__ == "__main__":
    diffusers.utils.logging.set_verbosity_error()
    with torch.no_grad():
        outputs, unet, kohya = of_unet()
        outputs["transformer"], transformer = of_transformer()
    states = {"unet": unet, "kohya": kohya, "transformer": transformer}
    if sys.argv[1:]:
        compare(sys.argv[1:], states.values())
    else:
        names = {f"{name}_names": shapes_of(state) for name, state in states.items()}
        np.savez_compressed(HERE / "recorded_lora.npz", **outputs, **names)
        with torch.no_grad():
            np.savez_compressed(HERE / "recorded_flux_lora.npz", **of_flux())
