"""The workloads of beside_torch.py in PyTorch: the same networks, weights and mathematics."""

import torch
from torch.nn import functional as F  # noqa: N812 - its common name.

from benchmarks import beside_layers, torch_song
from benchmarks.accelerator_torch import Update, twin_of
from benchmarks.beside_jax import CLASSES, STEPS, W, description, example, planned, released
from benchmarks.torch_twin import levels


def workloads(network, size, batch):
    """Returns functions by workload, as beside_jax.workloads."""
    torch.set_num_threads(1)
    if network == "layers":
        return layers(size, batch)
    run, weights = planned(network, size, batch)
    teacher, student = run.stages

    def new():
        if network == "dit":
            return twin_of(teacher, weights)
        model, prefix = torch_song.SongUNet(description(size)), "model."
        arrays = {name: torch.from_numpy(array) for name, array in released(size).items()}
        model.load_state_dict({name.removeprefix(prefix): x for name, x in arrays.items()})
        return model.to(memory_format=torch.channels_last)

    model = new().eval()
    z, t, label = (torch.from_numpy(array) for array in example(size, batch))
    z, label = z.permute(0, 3, 1, 2), label.long()

    def sample(steps, w=None):
        x = ddim(model, z, label, steps, w).clamp(-1, 1)
        return x.permute(0, 2, 3, 1).numpy()

    @torch.inference_mode()
    def forward():
        return model(z, t, label).permute(0, 2, 3, 1).numpy()

    halving = Halving(model)
    return {
        "forward": forward,
        "training update": Update(run, teacher, new().train(), "cpu"),
        "PD update": Update(run, student, new().train(), "cpu", halving),
        "1-step sampling": lambda: sample(1),
        "4-step guided sampling": lambda: sample(4, W),
        "32-step sampling": lambda: sample(32),
    }


def image(x):
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def heads(x):
    return torch.from_numpy(x).transpose(1, 2)


def kernel(x):
    return torch.from_numpy(x).permute(3, 2, 0, 1).contiguous()


def normalised(x, scale, bias):
    return F.silu(F.group_norm(x, beside_layers.GROUPS, scale, bias, beside_layers.EPSILON))


def convolved(x, kernel):
    return F.conv2d(x, kernel, padding=1)


LAYERS = {  # The function, the layouts of its arguments, and the way back.
    beside_layers.normalised: (normalised, (image, *2 * [torch.from_numpy]), (0, 2, 3, 1)),
    beside_layers.convolved: (convolved, (image, kernel), (0, 2, 3, 1)),
    beside_layers.attended: (F.scaled_dot_product_attention, 3 * [heads], (0, 2, 1, 3)),
}


def layers(size, batch):
    """Returns functions by workload, as beside_layers.workloads."""
    found = {}
    for name, (layer, given, change) in beside_layers.layers(size, batch).items():
        function, layouts, back = LAYERS[layer]
        given = [layout(x) for layout, x in zip(layouts, given, strict=True)]
        change = layouts[0](change)

        @torch.inference_mode()
        def call(function=function, given=given, back=back):
            return function(*given).permute(back).numpy()

        def gradient(function=function, given=given, change=change, back=back):
            given = [x.detach().requires_grad_() for x in given]
            return torch.autograd.grad(function(*given), given, change)[0].permute(back).numpy()

        found.update({name: call, f"{name}, gradient": gradient})
    return found


def as_image(level):
    return level[:, None, None, None]


def predicted(model, z, t, label, w=None):
    """Returns x, clipped, and eps of it, guided by one call on twice the batch."""
    alpha, sigma, _ = (as_image(level) for level in levels(t))
    if w is None:
        v = model(z, t, label)
    else:
        labels = torch.cat([label, torch.full_like(label, CLASSES)])
        given, null = model(torch.cat([z, z]), torch.cat([t, t]), labels).chunk(2)
        v = (1 + w) * given - w * null
    x = (alpha * z - sigma * v).clamp(-1, 1)
    return x, (z - alpha * x) / sigma


def step(x, eps, s):
    """Returns z_s of a DDIM step, and x where s = 0."""
    alpha, sigma, _ = (as_image(level) for level in levels(s))
    return torch.where(as_image(s) > 0, alpha * x + sigma * eps, x)


@torch.inference_mode()
def ddim(model, z, label, steps, w=None):
    """Returns samples of `steps` DDIM steps."""
    for i in range(steps, 0, -1):
        t = torch.full((len(z),), i / steps)
        x, eps = predicted(model, z, t, label, w)
        z = step(x, eps, t - 1 / steps) if i > 1 else x
    return z


class Halving:
    """The loss of Progressive: one step of the student lands where two of the teacher land."""

    def __init__(self, teacher):
        self._teacher = teacher

    def __call__(self, model, x, label, mixed):
        i = torch.randint(STEPS, (len(x),))
        t, mid, s = ((i + part) / STEPS for part in (1.0, 0.5, 0.0))
        alpha, sigma, logsnr = levels(t)
        z = as_image(alpha) * x + as_image(sigma) * torch.randn_like(x)
        with torch.no_grad():
            first, eps = predicted(self._teacher, z, t, label)
            second, _ = predicted(self._teacher, step(first, eps, mid), mid, label)
            (*_, l_mid), (*_, l_s) = levels(mid), levels(s)
            c = torch.expm1((l_mid - logsnr) / 2) / torch.expm1((l_s - logsnr) / 2)
            c = as_image(torch.where(s > 0, c, 0.0))
            target = c * first + (1 - c) * second
        v = model(z, t, label)
        x_hat = as_image(alpha) * z - as_image(sigma) * v
        beyond = (target.abs() >= 1 - 1e-6) & (x_hat * target.sign() >= 1)
        error = (x_hat - torch.where(beyond, x_hat.detach(), target)).square().mean(dim=(1, 2, 3))
        return (logsnr.exp().clamp(min=1) * error).mean()
