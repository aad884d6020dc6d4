"""Writes a full-size pipeline of Stable Diffusion with random weights, and compares with diffusers.

    python benchmarks/stable_diffusion.py write /tmp/sd15                    # 4.3 GB in float32
    python benchmarks/stable_diffusion.py write /tmp/sd15h --dtype=float16
    python benchmarks/stable_diffusion.py write_dit /tmp/dit --dtype=float16
    python benchmarks/stable_diffusion.py parity /tmp/sd15

It needs `pip install torch diffusers transformers`, which this package does without. `parity` calls
each network once, in float32, with one image or text, and prints the RMS and the largest difference
from diffusers, and the CPU-seconds of both (without compilation). It takes 10 GB of memory.
"""

import argparse
import functools
import gc
import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_jax.models import text_encoders, vae
from distill_jax.models.diffusers_files import read_directory, vae_of
from distill_jax.models.pretrained import stored_params
from distill_jax.teachers import diffusers as reader

SIDE, IMAGE, TOKENS = 64, 512, 77
UNET = {
    "sample_size": SIDE,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "layers_per_block": 2,
    "block_out_channels": [320, 640, 1280, 1280],
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": IMAGE,
}
TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "vocab_size": 49408,
    "max_position_embeddings": TOKENS,
    "hidden_act": "quick_gelu",
}
SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
ENDS = ("<|startoftext|>", "<|endoftext|>")


def libraries():
    """Returns torch, diffusers and transformers; ends the program if one is not installed."""
    try:
        import diffusers
        import torch
        import transformers
    except ImportError as error:
        raise SystemExit(f"{error}; pip install torch diffusers transformers") from error
    return torch, diffusers, transformers


def write(folder, dtype):
    """Writes a pipeline in the sizes of Stable Diffusion 1.5, network by network."""
    torch, diffusers, transformers = libraries()
    torch.manual_seed(0)
    makers = {
        "unet": lambda: diffusers.UNet2DConditionModel(**UNET),
        "vae": lambda: diffusers.AutoencoderKL(**VAE),
        "text_encoder": lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT)),
    }
    for name, make in makers.items():
        network = make().to(getattr(torch, dtype))
        print(f"{name}: {sum(leaf.numel() for leaf in network.parameters()):,} parameters")
        network.save_pretrained(folder / name)
        del network
        gc.collect()
    diffusers.DDIMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    index = {"_class_name": "StableDiffusionPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))
    write_tokenizer(folder / "tokenizer")


def write_dit(folder, dtype):
    """Writes a DiTPipeline in the sizes of DiT-XL/2, whose embeddings are equal in all blocks."""
    torch, diffusers, _ = libraries()
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(out_channels=8).to(getattr(torch, dtype))
    first = network.transformer_blocks[0].norm1.emb.state_dict()
    for block in network.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
    network.save_pretrained(folder / "transformer")
    diffusers.AutoencoderKL(**VAE).save_pretrained(folder / "vae")
    diffusers.DDIMScheduler(beta_schedule="linear").save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline"}))


def write_tokenizer(folder):
    """Writes a tokenizer of CLIP's kind that has no merges: every letter is a token."""
    folder.mkdir()
    letters = [chr(code) for code in range(33, 127)]
    names = [*letters, *(f"{letter}</w>" for letter in letters), *ENDS]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def inputs():
    """Returns a latent, an image, the number of a noise level, tokens of a text, and token ids."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((1, SIDE, SIDE, 4), np.float32)
    x = rng.uniform(-1, 1, (1, IMAGE, IMAGE, 3)).astype(np.float32)
    text = rng.standard_normal((1, TOKENS, TEXT["hidden_size"]), np.float32)
    return z, x, 499, text, rng.integers(0, TEXT["vocab_size"], (1, TOKENS))


def theirs(folder):
    """Yields names of networks with their outputs in PyTorch, and the CPU-seconds of the call."""
    torch, diffusers, transformers = libraries()
    diffusers.utils.logging.set_verbosity_error()
    z, x, k, text, ids = inputs()

    def nchw(x):
        return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())

    def load(kind, name):
        return kind.from_pretrained(folder / name, torch_dtype=torch.float32).eval()

    def timed(call):
        began = time.process_time()
        return call().numpy(), time.process_time() - began

    network = load(diffusers.UNet2DConditionModel, "unet")
    yield "unet", timed(lambda: network(nchw(z), k, torch.from_numpy(text)).sample)
    network = load(diffusers.AutoencoderKL, "vae")
    yield "decode", timed(lambda: network.decode(nchw(z)).sample)
    yield "encode", timed(lambda: network.encode(nchw(x)).latent_dist.mean)
    network = load(transformers.CLIPTextModel, "text_encoder")
    yield "text", timed(lambda: network(torch.from_numpy(ids)).last_hidden_state)


def ours(folder):
    """Yields what `theirs` does, from our networks with the same files."""
    z, x, k, text, ids = inputs()
    imported = reader.read(folder)
    cond = {"text": text, "text_mask": np.ones(text.shape[:2], bool)}
    apply = imported.network_spec().network.apply
    yield "unet", timed(apply, as_float(imported.params), z, np.float32([(k + 1) / 1000]), cond)
    found = read_directory(folder / "vae", "AutoencoderKL")
    layers = vae_of(found.content, str(folder)).layers
    params = as_float(stored_params(vae.shapes(layers), found.state, found.file, ""))
    yield "decode", timed(functools.partial(vae.decode, layers), params, z)
    yield "encode", timed(lambda params, x: vae.encode(layers, params, x).mean, params, x)
    directory = text_encoders.find(folder)
    _, options = text_encoders.parse(directory.described(), str(folder))
    tokens, mask = functools.partial(text_encoders.tokens, options), np.ones(ids.shape, bool)
    yield "text", timed(tokens, directory.params(), ids, mask)


def as_float(params):
    """Returns unread parameters as float32 arrays."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf.read(()), jnp.float32), params)


def timed(function, *given):
    """Returns an output as an array, and the CPU-seconds of the compiled call."""
    compiled = jax.jit(function).lower(*given).compile()
    began = time.process_time()
    return np.asarray(compiled(*given)), time.process_time() - began


def parity(folder):
    """Prints a row for each network: differences from diffusers, and seconds."""
    torch, _, _ = libraries()
    with torch.no_grad():
        expected = dict(theirs(folder))
    gc.collect()
    print(f"{'':8}{'RMS':>10}{'largest':>10}{'seconds':>10}{'diffusers':>10}   of the output's own")
    with jax.default_matmul_precision("highest"):
        for name, (found, seconds) in ours(folder):
            want, other = expected[name]
            want = want.transpose(0, 2, 3, 1) if want.ndim == 4 else want
            apart = np.abs(found - want)
            rms = np.sqrt(np.mean(apart**2) / np.mean(want**2))
            most = apart.max() / np.abs(want).max()
            print(f"{name:8}{rms:10.1e}{most:10.1e}{seconds:10.1f}{other:10.1f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("write", "write_dit", "parity"))
    parser.add_argument("folder", type=epath.Path)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    flags = parser.parse_args()
    if flags.what == "parity":
        parity(flags.folder)
    else:
        make = write if flags.what == "write" else write_dit
        make(pathlib.Path(flags.folder), flags.dtype)


if __name__ == "__main__":
    sys.exit(main())
