"""Times a teacher's update in PyTorch: a row of benchmarks/accelerator beside that of JAX.

A teacher's update of the same network from the same weights on as many images, with channels-last
memory, autocast where ours computes in bfloat16, TF32 as JAX has it, a fused optimizer and
torch.compile, on GPUs: for two CPU cores that took over a quarter of an hour. JAX stays on the CPU:
it plans, and shows first that both networks agree.
"""

import time

import jax
import numpy as np
import torch

from benchmarks import torch_twin
from benchmarks.accelerator_update import filled, pace, peak_memory, planned, speeds
from distill_jax.diffusion.schedule import Cosine
from distill_jax.models.build import make_network
from distill_jax.models.dit import Architecture as Transformer
from distill_jax.models.unet import Architecture as UNet

TWINS = {"unet": (torch_twin.UNet, UNet), "dit": (torch_twin.DiT, Transformer)}
AGREE = 1e-4  # Largest relative difference, in float32: a thousand roundings.


def twin_of(stage, params):
    """Returns the stage's network in PyTorch, on the CPU, with these parameters."""
    network, architecture = TWINS[stage.model["name"]]
    options = {key: value for key, value in stage.model.items() if key != "name"}
    spec = architecture(stage.roles.student.spec, **options)
    return torch_twin.load(network(spec), params).to(memory_format=torch.channels_last)


def disagreement(run, stage, params, model):
    """Returns the RMS of the outputs' difference over that of the output, in float32."""
    spec = {**run.config.to_dict(), "model": {**stage.model, "dtype": "float32"}}
    network = make_network(spec, run.dataset.spec).network
    rng = np.random.default_rng(2)
    z = rng.standard_normal((2, *run.dataset.shape), np.float32)
    t, label = np.float32([0.3, 0.8]), np.int32([1, run.dataset.num_classes])
    ours = np.asarray(jax.jit(network.apply)(params, z, t, {"label": label}))
    with torch.no_grad():
        given = (torch.from_numpy(array) for array in (t, label.astype(np.int64)))
        theirs = model.eval()(torch.from_numpy(z.transpose(0, 3, 1, 2)), *given)
    theirs = theirs.numpy().transpose(0, 2, 3, 1)
    return float(np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(ours**2)))


def loss_of(model, x, label, mixed):
    """Returns Diffusion.loss for v: max(e^logsnr, 1) |x_hat - x|^2, t ~ U[0, 1)."""
    t, eps = torch.rand(len(x), device=x.device), torch.randn_like(x)
    alpha, sigma, logsnr = torch_twin.levels(t)
    alpha, sigma = (level[:, None, None, None] for level in (alpha, sigma))
    z = alpha * x + sigma * eps
    with torch.autocast(x.device.type, torch.bfloat16, enabled=mixed):
        v = model(z, t, label)
    error = (alpha * z - sigma * v - x).square().mean(dim=(1, 2, 3))
    return (logsnr.exp().clamp(min=1) * error).mean()


class Update:
    """An update: gradient of a loss, by default of a teacher, clipping, AdamW and EMA."""

    def __init__(self, run, stage, model, device, loss=loss_of):
        spec, settings = stage.spec, {**run.config.optimizer, **stage.spec.optimizer}
        self._loss, self._model, self._params = loss, model, list(model.parameters())
        self._ema = [param.detach().clone() for param in self._params]
        self._decay, self._clip = spec.ema_decay, settings["clip_norm"]
        self._mixed = stage.model.get("dtype") == "bfloat16"
        self._label_dropout = stage.method.label_dropout
        self._optimizer = torch.optim.AdamW(
            self._params,
            lr=spec.learning_rate,
            betas=(settings["b1"], settings["b2"]),
            eps=settings["eps"],
            weight_decay=spec.weight_decay,
            fused=True,
        )
        rng, size = np.random.default_rng(1), run.config.batch_size
        side, _, channels = run.dataset.shape
        x = torch.from_numpy(rng.integers(256, size=(size, channels, side, side), dtype=np.uint8))
        self._x = x.to(device).contiguous(memory_format=torch.channels_last)
        self._classes = run.dataset.num_classes
        self._label = torch.from_numpy(rng.integers(self._classes, size=size)).to(device)

    def compile(self):
        """Compiles the network."""
        self._model = torch.compile(self._model)

    def eager(self):
        """Returns to the network that is not compiled."""
        self._model = getattr(self._model, "_orig_mod", self._model)

    def __call__(self):
        dropped = torch.rand(len(self._x), device=self._x.device) < self._label_dropout
        label = torch.where(dropped, self._classes, self._label)
        x = self._x.float() / 127.5 - 1
        self._optimizer.zero_grad(set_to_none=True)
        self._loss(self._model, x, label, self._mixed).backward()
        torch.nn.utils.clip_grad_norm_(self._params, self._clip)
        self._optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self._ema, self._params, 1 - self._decay)


def check(run, stage):
    """Raises ValueError for a stage whose loss is not `loss_of`."""
    is_ours = run.config.parameterization == "v" and stage.roles.student.schedule == Cosine()
    if not (is_ours and stage.spec.method.name == "diffusion"):
        raise ValueError(f"{stage.name} is no teacher that predicts v on the cosine schedule")


def first(update, wait, compiles):
    """Runs the first update, compiled if wanted; returns (its seconds, a note)."""
    if compiles:
        update.compile()
    note, began = "torch.compile" if compiles else "eager", time.perf_counter()
    try:
        update()
    except Exception as error:
        if "out of memory" in str(error).lower():
            raise
        update.eager()
        note, began = f"eager: torch.compile failed ({type(error).__name__})", time.perf_counter()
        update()
    wait()
    return time.perf_counter() - began, note


def update(config, stage, size, batch, seconds):
    """Returns the row of a teacher's update in PyTorch, timed for `seconds`."""
    run, stage = planned(config, stage, size, batch)
    check(run, stage)
    params = filled(stage.shapes["student"])
    model = twin_of(stage, params)
    off = disagreement(run, stage, params, model)
    if not off < AGREE:
        raise ValueError(f"the networks disagree by {off:.2g} of their output, over {AGREE}")
    del params
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    model = model.train().to(device)
    step = Update(run, stage, model, device)
    wait = torch.cuda.synchronize if cuda else lambda: None
    compile_seconds, note = first(step, wait, cuda or size == "smoke")
    each, timed = pace(step, wait, seconds)
    kind = torch.cuda.get_device_name() if cuda else "cpu"
    memory = (torch.cuda.max_memory_allocated(), "device") if cuda else peak_memory()
    row = {"compile_seconds": compile_seconds, "timed": timed}
    row.update(speeds(run, stage, each, kind, 1))
    return {**row, "peak_bytes": memory[0], "peak_of": memory[1], "note": f"{note}, off {off:.1g}"}
