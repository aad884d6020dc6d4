"""Makes recorded*.npz and inpainted.npy: outputs of diffusers, for the tests of its networks.

Run it in a folder of its own with the packages that are compared, from the checkout:

    python -m venv reference && . reference/bin/activate
    pip install torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 numpy pillow
    python tests/models/diffusers/make.py
"""

import functools
import json
import pathlib
import sys
import types

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.schedulers import scheduling_flow_match_lcm

sys.path.insert(0, str(pathlib.Path(__file__).parents[3]))
from tests.models.diffusers import (  # noqa: E402
    DIT,
    DIT_SIZES,
    FLOW_EULER,
    FLOW_LCM,
    FLOW_SIDES,
    FLOW_TIMES,
    FLUXES,
    INPAINTING,
    LABELS,
    MMDITS,
    SCHEDULER,
    SIZES,
    STEPS,
    UNETS,
    VAE,
    VAES,
    W,
    flow_noise,
    inputs,
    mask,
    mmdit_weights,
    pixels,
    pooled,
    weights,
)

HERE = pathlib.Path(__file__).parent


def filled(network, weights=weights):
    """Returns a network with random weights, and the names and shapes of its arrays as JSON."""
    shapes = {key: tuple(leaf.shape) for key, leaf in network.named_parameters()}
    state = {key: torch.tensor(weights(key, shape)) for key, shape in shapes.items()}
    network.eval().load_state_dict({**network.state_dict(), **state})
    return network, json.dumps(shapes)


def nchw(x):
    return torch.tensor(x).permute(0, 3, 1, 2)


def nhwc(x):
    return x.permute(0, 2, 3, 1).numpy()


def embedded(w, dim):
    """Returns the guidance embedding of diffusers' pipelines of latent consistency models."""
    angles = 1000.0 * w
    half = dim // 2
    frequencies = torch.exp(torch.arange(half) * -(np.log(10000.0) / (half - 1)))
    angles = angles[:, None] * frequencies[None]
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


def unets():
    """Returns the outputs of the UNets."""
    found = {}
    for name, config in UNETS.items():
        network, found[f"{name}_names"] = filled(UNet2DConditionModel(**config))
        for number, sizes in enumerate(SIZES):
            z, k, text, w = inputs(sizes, config["in_channels"])
            dim = config.get("time_cond_proj_dim")
            cond = embedded(torch.tensor(w), dim) if dim else None
            given = (nchw(z), torch.tensor(k), torch.tensor(text))
            found[f"{name}_{number}"] = nhwc(network(*given, timestep_cond=cond).sample)
    return found


def dit():
    """Returns the outputs of the DiT."""
    network, names = filled(DiTTransformer2DModel(**DIT))
    found = {"dit_names": names}
    for number, sizes in enumerate(DIT_SIZES):
        z, k, *_ = inputs(sizes, DIT["in_channels"])
        given = torch.tensor(k).long(), torch.tensor(LABELS[: len(z)])
        found[f"dit_{number}"] = nhwc(network(nchw(z), *given).sample)
    return found


def mmdits():
    """Returns the outputs of the transformers of Stable Diffusion 3, and their last positions."""
    found = {}
    for name, config in MMDITS.items():
        network, found[f"{name}_names"] = filled(SD3Transformer2DModel(**config), mmdit_weights)
        found[f"{name}_positions"] = network.pos_embed.pos_embed[0, -1:].numpy()
        for number, sizes in enumerate(SIZES):
            z, k, text, _ = inputs(sizes, 4)
            given = (nchw(z), torch.tensor(text), torch.tensor(pooled(sizes)), torch.tensor(k + 1))
            found[f"{name}_{number}"] = nhwc(network(*given).sample)
    return found


def flows():
    """Returns latents of pipelines of Stable Diffusion 3: a student's and a guided teacher's."""
    network, _ = filled(SD3Transformer2DModel(**MMDITS["sd35"]), mmdit_weights)
    _, _, text, _ = inputs(SIZES[0], 4)
    empty = torch.zeros_like(torch.tensor(text))
    given = {"prompt_embeds": torch.tensor(text), "negative_prompt_embeds": empty}
    given["pooled_prompt_embeds"] = torch.tensor(pooled(SIZES[0]))
    given["negative_pooled_prompt_embeds"] = torch.zeros_like(given["pooled_prompt_embeds"])

    def drawn(scheduler, call, times, scale):
        names = [f"{kind}{i}" for kind in ("text_encoder", "tokenizer") for i in ("", "_2", "_3")]
        parts = dict.fromkeys(names) | {"transformer": network, "scheduler": scheduler}
        pipeline = StableDiffusion3Pipeline(vae=filled(AutoencoderKL(**VAE))[0], **parts)
        z = flow_noise(call)
        side = z.shape[1] * pipeline.vae_scale_factor
        options = {"height": side, "width": side, "sigmas": list(times), "guidance_scale": scale}
        options |= {"latents": nchw(z), "num_inference_steps": len(times)}
        return nhwc(pipeline(output_type="latent", **options, **given).images)

    schedulers = FlowMatchLCMScheduler.from_config(FLOW_LCM), FlowMatchEulerDiscreteScheduler
    scheduling_flow_match_lcm.randn_tensor = lambda shape, **_: nchw(
        flow_noise(FLOW_SIDES.index(shape[-1]))
    )
    times = [i / STEPS for i in range(STEPS, 0, -1)]
    return {
        "student": drawn(schedulers[0], 0, FLOW_TIMES, 1.0),
        "teacher": drawn(schedulers[1].from_config(FLOW_EULER), 1, times, 1 + W),
    }


def flux_flows():
    """Returns latents of pipelines of FLUX.1: dev in Euler steps, and schnell as a student."""

    def packed(x):
        return FluxPipeline._pack_latents(nchw(x), *x.shape[:1], x.shape[-1], *x.shape[1:3])

    def drawn(name, scheduler, times, scale):
        network = filled(FluxTransformer2DModel(**FLUXES[name]), mmdit_weights)[0]
        names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
        parts = {"transformer": network, "scheduler": scheduler, **dict.fromkeys(names)}
        pipeline = FluxPipeline(vae=filled(AutoencoderKL(**VAE))[0], **parts)
        side = FLOW_SIDES[1] * pipeline.vae_scale_factor
        options = {"height": side, "width": side, "sigmas": list(times), "guidance_scale": scale}
        options |= {"prompt_embeds": torch.tensor(inputs(SIZES[0], 4)[2])}
        options |= {"pooled_prompt_embeds": torch.tensor(pooled(SIZES[0]))}
        options |= {"latents": packed(flow_noise(1)), "num_inference_steps": len(times)}
        found = pipeline(output_type="latent", **options).images
        factor = pipeline.vae_scale_factor
        return nhwc(FluxPipeline._unpack_latents(found, side, side, factor))

    again = np.random.default_rng(2).normal(size=(2, 8, 8, 4)).astype(np.float32)
    scheduling_flow_match_lcm.randn_tensor = lambda shape, **_: packed(again)
    lcm = FlowMatchLCMScheduler.from_config({**FLOW_LCM, "scale_factors": None})
    euler = FlowMatchEulerDiscreteScheduler.from_config(FLOW_EULER)
    times = [i / STEPS for i in range(STEPS, 0, -1)]
    return {
        "dev": drawn("dev", euler, times, 1 + W),
        "schnell": drawn("schnell", lcm, FLOW_TIMES, 1.0),
    }


def flux_output(network, sizes):
    """Returns the output of a transformer of FLUX.1 for latents that its pipeline packs."""
    z, k, text, w = inputs(sizes, 4)
    batch, height, width = sizes
    packed = FluxPipeline._pack_latents(nchw(z), batch, 4, height, width)
    places = batch, height // 2, width // 2, packed.device, packed.dtype
    output = network(
        packed,
        torch.tensor(text),
        torch.tensor(pooled(sizes)),
        torch.tensor((k + 1) / 1000),
        FluxPipeline._prepare_latent_image_ids(*places),
        torch.zeros(text.shape[1], 3),
        torch.tensor(1 + w) if network.config.guidance_embeds else None,
    ).sample
    # The factor 1 is of the latent's sides; a pipeline gives those of the image.
    return nhwc(FluxPipeline._unpack_latents(output, height, width, 1))


def fluxes():
    """Returns the outputs of the transformers of FLUX.1, and the names of their weights."""
    found = {}
    for name, config in FLUXES.items():
        network, found[f"{name}_names"] = filled(FluxTransformer2DModel(**config), mmdit_weights)
        found |= {
            f"{name}_{number}": flux_output(network, sizes) for number, sizes in enumerate(SIZES)
        }
    return found


def vaes():
    """Returns the moments and the decoded images of the autoencoders."""
    found = {}
    for name, config in VAES.items():
        network, found[f"{name}_names"] = filled(AutoencoderKL(**config))
        factor = 2 ** (len(config["block_out_channels"]) - 1)
        for number, sizes in enumerate(SIZES):
            z, *_ = inputs(sizes, config["latent_channels"])
            given = network.encode(nchw(pixels(sizes, factor))).latent_dist
            found[f"{name}_mean_{number}"] = nhwc(given.mean)
            found[f"{name}_std_{number}"] = nhwc(given.std)
            found[f"{name}_images_{number}"] = nhwc(network.decode(nchw(z)).sample)
    return found


def schedules():
    """Returns the signal levels of Stable Diffusion, as published and with terminal SNR zero."""
    found, options = {}, {"beta_schedule": "scaled_linear", "beta_start": 0.00085}
    for name, zero in (("published", False), ("zero", True)):
        schedule = DDIMScheduler(**options, beta_end=0.012, rescale_betas_zero_snr=zero)
        found[f"alpha_{name}"] = schedule.alphas_cumprod.sqrt()
    return found


def pipeline_of(kind, config):
    """Returns a pipeline with a UNet that takes w."""
    scheduler = DDIMScheduler(**{k: v for k, v in SCHEDULER.items() if k != "_class_name"})
    absent = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    return kind(
        vae=filled(AutoencoderKL(**VAE))[0],
        unet=filled(UNet2DConditionModel(**config))[0],
        scheduler=scheduler,
        requires_safety_checker=False,
        **dict.fromkeys(absent),
    )


def sampled():
    """Returns latents of pipelines that draw from a text, and that inpaint images."""
    z, _, text, _ = inputs(SIZES[0], 4)
    factor = 2 ** (len(VAE["block_out_channels"]) - 1)
    sides = {"height": z.shape[1] * factor, "width": z.shape[2] * factor}
    given = {
        **sides,
        "prompt_embeds": torch.tensor(text),
        "latents": nchw(z),
        "num_inference_steps": STEPS,
        "guidance_scale": 1 + W,
    }
    pipeline = pipeline_of(StableDiffusionPipeline, UNETS["w"])
    pictures = np.stack([np.asarray(image) for image in pipeline(**given).images])
    given["output_type"] = "latent"
    found = {"latents": nhwc(pipeline(**given).images), "pictures": pictures}
    pipeline = pipeline_of(StableDiffusionInpaintPipeline, INPAINTING)
    pipeline.vae.encode = functools.partial(mean_of, pipeline.vae.encode)
    image, hidden = nchw(pixels(SIZES[0], factor)), torch.tensor(mask(SIZES[0], factor))
    inpainted = pipeline(image=(image + 1) / 2, mask_image=hidden[None, None], **given).images
    return found, nhwc(inpainted)


def mean_of(encode, x):
    """Encodes images into a distribution that is its mean."""
    found = encode(x).latent_dist
    found.sample = lambda generator: found.mean
    return types.SimpleNamespace(latent_dist=found)


if __name__ == "__main__":
    with torch.no_grad():
        np.savez_compressed(HERE / "recorded_dit.npz", **dit())
        np.savez_compressed(HERE / "recorded_mmdit.npz", **mmdits())
        np.savez_compressed(HERE / "recorded_flow.npz", **flows())
        np.savez_compressed(HERE / "recorded_flux.npz", **fluxes())
        np.savez_compressed(HERE / "recorded_flux_flow.npz", **flux_flows())
        drawn, inpainted = sampled()
        np.savez_compressed(HERE / "recorded.npz", **unets(), **vaes(), **schedules(), **drawn)
        np.save(HERE / "inpainted.npy", inpainted)
