"""Packaging of distill_jax; pyproject.toml holds the settings of the tools only."""

import pathlib

from setuptools import find_packages, setup

BASE = [
    "absl-py>=2.1",
    "clu>=0.0.12",
    "etils[epath]>=1.9",
    "flax>=0.12",
    "grain>=0.2.12",
    "jax>=0.8",
    "jaxtyping>=0.3",
    "matplotlib>=3.8",
    "ml-collections>=1.0",
    "numpy>=1.26",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.30",
    "pillow>=10.0",
    "rich>=13.0",
    "scikit-learn>=1.4",
    "tensorboardX>=2.6",
    "tensorflow-datasets>=4.9.7",
]

setup(
    name="distill_jax",
    version="0.1.0",
    description="Few-step samplers from slow, guided diffusion models, in JAX",
    long_description=pathlib.Path("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["distill_jax", "distill_jax.*"]),
    python_requires=">=3.11",
    install_requires=BASE,
    extras_require={
        "tpu": ["jax[tpu]>=0.8"],
        "cuda": ["jax[cuda13]>=0.8"],
        "dev": ["beartype>=0.20", "pytest>=8.0", "ruff>=0.9"],
    },
)
