"""Times Stable Diffusion 1.5 in diffusers: rows of benchmarks/accelerator beside those of JAX.

The same network with the same weights and sizes, whose output must first agree with ours. On GPUs
it is compiled by torch.compile, in channels-last memory; where ours computes in bfloat16, sampling
has weights in bfloat16, and an update uses autocast. JAX stays on the CPU.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from benchmarks.accelerator_sample import CODECS, W, prepared
from benchmarks.accelerator_torch import AGREE, first
from benchmarks.accelerator_update import filled, pace, peak_memory, planned, rates, speeds
from distill_jax.models.build import make_network
from distill_jax.models.layers import sinusoid
from distill_jax.models.pretrained import torch_state
from distill_jax.run import costs
from distill_jax.run.flops import flops
from distill_jax.sampling.autoencoder import Autoencoder
from distill_jax.teachers.pipelines import unet_config

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def unet_of(run, stage, params):
    """Returns the UNet of a stage in diffusers with these parameters, in float32 on the CPU."""
    config = unet_config(stage.model, run.dataset.spec)
    if "w" not in stage.trained.inputs:
        config["time_cond_proj_dim"] = None
    model = UNet2DConditionModel.from_config(config)
    state = {
        name: np.array(leaf.read(()), np.float32) for name, leaf in torch_state(params).items()
    }
    model.load_state_dict({name: torch.from_numpy(leaf) for name, leaf in state.items()})
    return model.to(memory_format=torch.channels_last)


def disagreement(run, stage, params, model):
    """Returns the RMS of the outputs' difference over that of the output, in float32."""
    spec = {**run.config.to_dict(), "model": {**stage.model, "dtype": "float32"}}
    network, w = make_network(spec, run.dataset.spec).network, "w" in stage.trained.inputs
    rows, t = next(run.dataset.batches(2, 0, 2)), np.float32([0.25, 0.75])
    cond = {**rows.cond, **({"w": np.float32([2, W])} if w else {})}
    ours = np.asarray(jax.jit(network.apply)(params, rows.x, t, cond))
    embedded = embedding(np.float32([2, W])) if w else None
    with torch.no_grad():
        given = latents_of(rows.x), torch.from_numpy(1000 * t - 1), text_of(rows.cond)
        theirs = model.eval()(*given, timestep_cond=embedded).sample
    theirs = theirs.numpy().transpose(0, 2, 3, 1)
    return float(np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(ours**2)))


def embedding(w):
    """Returns the sinusoid of w that the UNet takes."""
    return torch.from_numpy(np.array(sinusoid(jnp.asarray(w), 256)))


def latents_of(x):
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def text_of(cond):
    return torch.from_numpy(np.array(cond["text"]))


def checked(run, stage, params):
    """Returns the UNet in diffusers and its disagreement; raises ValueError if that is large."""
    model = unet_of(run, stage, params)
    off = disagreement(run, stage, params, model)
    if not off < AGREE:
        raise ValueError(f"the networks disagree by {off:.2g} of their output, over {AGREE}")
    return model, off


def codec_of(size):
    """Returns the autoencoder of the sizes of ours, with random weights, in float32."""
    layers = CODECS[size].layers
    levels = len(layers.widths)
    sizes = {"block_out_channels": layers.widths, "layers_per_block": layers.blocks}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels}
    blocks["up_block_types"] = ("UpDecoderBlock2D",) * levels
    return AutoencoderKL(**sizes, **blocks, norm_num_groups=layers.groups).eval().to(DEVICE)


def sampler(unet, vae, scheduler, given, guided):
    """Returns the function that draws one batch, as a pipeline does."""
    z, text, null, w = given

    @torch.no_grad()
    def draw():
        x, tokens = z, torch.cat([null, text]) if guided else text
        for k in scheduler.timesteps:
            both = torch.cat([x, x]) if guided else x
            found = unet(both, k, tokens, timestep_cond=None if guided else w).sample
            if guided:
                without, found = found.chunk(2)
                found = without + (1 + W) * (found - without)
            x = scheduler.step(found, k, x).prev_sample
        return x if vae is None else vae.decode(x.float() / Autoencoder().scale).sample

    return draw


def row_of(stage, size, batch, flop, timing, note):
    """Returns the row of measured seconds: (of compilation, of a call, number of timed calls)."""
    compile_seconds, each, timed = timing
    kind = torch.cuda.get_device_name() if CUDA else "cpu"
    memory = (torch.cuda.max_memory_allocated(), "device") if CUDA else peak_memory()
    row = {"compile_seconds": compile_seconds, "timed": timed}
    row.update(rates(stage, batch, flop, each, kind, 1))
    return {**row, "peak_bytes": memory[0], "peak_of": memory[1], "note": note}


def wait():
    """Waits for the device."""
    if CUDA:
        torch.cuda.synchronize()


class Compiled:
    """A function of networks that can be compiled, for accelerator_torch.first."""

    def __init__(self, call, networks):
        self._call, self._networks = call, networks

    def compile(self):
        """Compiles the networks."""
        for each in self._networks:
            each.compile()

    def eager(self):
        """Returns to networks that are not compiled."""
        for each in self._networks:
            each._compiled_call_impl = None

    def __call__(self):
        return self._call()


def sample(calls, guided, decode, size, batch, seconds):
    """Returns the row of a sampler with so many steps, of two calls each if it is guided."""
    run, stage, params, (z, cond, _) = prepared(guided, size, batch)
    unet, off = checked(run, stage, params)
    dtype = torch.bfloat16 if stage.model["dtype"] == "bfloat16" else torch.float32
    unet, vae = unet.eval().to(DEVICE, dtype), codec_of(size) if decode else None
    scheduler = DDIMScheduler(**SCHEDULE, prediction_type="v_prediction", clip_sample=False)
    scheduler.set_timesteps(calls, DEVICE)
    null = torch.from_numpy(run.dataset.null["text"]).expand(batch, -1, -1)
    arrays = latents_of(z), text_of(cond), null, embedding(np.full(batch, W, np.float32))
    given = [array.to(DEVICE, dtype) for array in arrays]
    networks = [unet] if vae is None else [unet, vae.decoder]
    draw = Compiled(sampler(unet, vae, scheduler, given, guided), networks)
    compile_seconds, note = first(draw, wait, CUDA)
    timing = compile_seconds, *pace(draw, wait, seconds)
    network = stage.roles.student
    flop = calls * (1 + guided) * costs.forward_flops(network, stage.trained.inputs)
    if decode:
        flop += flops(CODECS[size].decode, filled(CODECS[size].shapes(run.dataset.spec)), z[:1])
    return row_of(stage, size, batch, flop * batch, timing, f"{note}, off {off:.1g}")


class Update:
    """An update of guided distillation: gradient, clipping, AdamW and EMA."""

    def __init__(self, run, stage, student, teacher):
        self._student, self._teacher = student, teacher
        self._params = list(student.parameters())
        self._ema = [param.detach().clone() for param in self._params]
        self._decay, self._mixed = stage.spec.ema_decay, stage.model["dtype"] == "bfloat16"
        self._optimizer = torch.optim.AdamW(self._params, lr=stage.spec.learning_rate, fused=True)
        self._low_high = stage.method.w_range
        rows = next(run.dataset.batches(1, 0, run.config.batch_size))
        self._x, self._text = latents_of(rows.x).to(DEVICE), text_of(rows.cond).to(DEVICE)
        self._null = torch.from_numpy(run.dataset.null["text"]).to(DEVICE).expand_as(self._text)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, device=DEVICE) ** 2
        self._alpha_bar = torch.cumprod(1 - betas, 0)

    def __call__(self):
        x, num = self._x, len(self._x)
        k, eps = torch.randint(1000, (num,), device=DEVICE), torch.randn_like(x)
        low, high = self._low_high
        w = low + (high - low) * torch.rand(num, device=DEVICE)
        alpha_bar = self._alpha_bar[k][:, None, None, None]
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        z = alpha * x + sigma * eps
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=self._mixed):
            with torch.no_grad():
                tokens, both = torch.cat([self._text, self._null]), torch.cat([z, z])
                own = self._teacher.dtype
                v = self._teacher(both.to(own), torch.cat([k, k]), tokens.to(own)).sample
            embedded = angles(w).to(self._student.dtype)
            v_hat = self._student(z, k, self._text, timestep_cond=embedded).sample
        v, without = v.float().chunk(2)
        v = v + w[:, None, None, None] * (v - without)
        error = (sigma * (v_hat.float() - v)).square().mean(dim=(1, 2, 3))
        snr = alpha_bar[:, 0, 0, 0] / (1 - alpha_bar[:, 0, 0, 0])
        self._optimizer.zero_grad(set_to_none=True)
        (snr.clamp(min=1) * error).mean().backward()
        torch.nn.utils.clip_grad_norm_(self._params, 1.0)
        self._optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self._ema, self._params, 1 - self._decay)


def angles(w):
    """Returns layers.sinusoid of w with 256 channels, on the device."""
    frequencies = torch.exp(-np.log(10000.0) * torch.arange(128, device=DEVICE) / 127)
    angle = 1000.0 * w[:, None] * frequencies
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def update(config, stage, size, batch, seconds):
    """Returns the row of an update of guided distillation in diffusers, timed for `seconds`."""
    run, stage = planned(config, stage, size, batch)
    student, off = checked(run, stage, filled(stage.shapes["student"]))
    teacher = unet_of(run, run.stages[0], filled(stage.shapes["teacher"], 1)).eval()
    mixed = stage.model["dtype"] == "bfloat16"
    teacher.to(DEVICE, torch.bfloat16 if mixed else torch.float32).requires_grad_(False)
    step = Update(run, stage, student.train().to(DEVICE), teacher)
    compile_seconds, note = first(Compiled(step, [student, teacher]), wait, CUDA)
    each, timed = pace(step, wait, seconds)
    flop = speeds(run, stage, each, "cpu", 1)["flop"]
    timing = compile_seconds, each, timed
    return row_of(stage, size, batch, flop, timing, f"{note}, off {off:.1g}")
