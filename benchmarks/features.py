"""Measures images/s through the feature networks, beside PyTorch where it is installed.

python benchmarks/features.py --side=32

The weights are random. The networks of PyTorch are those of torch-fidelity and
efficientnet-lite-pytorch (tests/metrics/recorded/make.py says how to install them). Both sides
resize images of --side to the network's size.
"""

import sys
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from distill_jax.evaluation.feature_networks import BATCH, KINDS, FeatureNetwork
from distill_jax.runtime.sharding import make_layout

SIDE = flags.DEFINE_integer("side", 32, "Side of the images.", lower_bound=1)
COUNT = flags.DEFINE_integer("count", 256, "Number of images per network.", lower_bound=BATCH)


def ours(name):
    """Returns a function from images to features, with random weights."""
    kind, layout = KINDS[name], make_layout({"data": -1})
    one = jnp.zeros((1, kind.side, kind.side, 3))
    variables = jax.jit(kind.module().init)(jax.random.key(0), one)
    network = FeatureNetwork(name, kind.resize, "0" * 64, layout.replicate(variables), layout, kind)
    return lambda x: network([x])


def torch_inception():
    """Returns torch-fidelity's Inception with random weights."""
    import torch

    for part in ("", ".models", ".transforms", ".transforms.functional", ".datasets"):
        sys.modules.setdefault(f"torchvision{part}", mock.MagicMock())  # Imported, not needed.
    import torch_fidelity.feature_extractor_inceptionv3 as inception

    state = mock.patch.object(inception.FeatureExtractorInceptionV3, "load_state_dict")
    with state, mock.patch.object(torch, "load"):
        return inception.FeatureExtractorInceptionV3("", ["2048"], "no file").eval()


def torch_efflite0():
    """Returns the PyTorch port of EfficientNet-lite0 with random weights, and its resize."""
    import efficientnet_lite_pytorch
    import torch

    class Resized(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lite = efficientnet_lite_pytorch.EfficientNet.from_name("efficientnet-lite0")

        def forward(self, x):
            size = KINDS["efflite0"].side, KINDS["efflite0"].side
            x = torch.nn.functional.interpolate(x.float(), size, mode="bicubic")
            return self.lite.extract_features((x - 127) / 128).mean((2, 3))

    return Resized().eval()


def theirs(name):
    """Returns a function from images to features of PyTorch; None where it is not installed."""
    try:
        network = {"inception": torch_inception, "efflite0": torch_efflite0}[name]()
    except ImportError:
        return None
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = network.to(device)

    def run(x):
        parts = []
        with torch.no_grad():
            for i in range(0, len(x), BATCH):
                batch = torch.tensor(x[i : i + BATCH]).permute(0, 3, 1, 2).to(device)
                found = network(batch)
                parts.append((found[0] if isinstance(found, tuple) else found).cpu())
        return parts

    return run


def speed(function, x):
    """Returns images/s of the second call."""
    if function is None:
        return None
    function(x[:BATCH])
    began = time.perf_counter()
    function(x)
    return len(x) / (time.perf_counter() - began)


def main(_):
    shape = COUNT.value, SIDE.value, SIDE.value, 3
    x = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    print(f"{jax.devices()[0].device_kind}, images of {SIDE.value}x{SIDE.value}, batch {BATCH}\n")
    print("| network | input | JAX images/s | PyTorch images/s |\n| - | - | - | - |")
    for name, kind in KINDS.items():
        if kind.read:  # Its size is in its directory.
            continue
        speeds = [speed(function, x) for function in (ours(name), theirs(name))]
        cells = ["not installed" if value is None else f"{value:.1f}" for value in speeds]
        print(f"| {name} | {kind.side} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    app.run(main)
