"""Makes recorded_t5.npz: outputs of Hugging Face's T5 encoder. Run it from the checkout:

python -m venv reference && . reference/bin/activate
pip install torch==2.13.0 transformers==5.24.0 numpy
python tests/models/pretrained/make_t5.py
"""

import json
import pathlib
import sys

import numpy as np
import torch
from transformers import T5Config, T5EncoderModel

sys.path.insert(0, str(pathlib.Path(__file__).parents[3]))
from tests.models.pretrained import IDS, MASK, T5, weights  # noqa: E402

if __name__ == "__main__":
    network = T5EncoderModel(T5Config(**T5)).eval()
    shapes = {name: tuple(leaf.shape) for name, leaf in network.named_parameters()}
    state = {name: torch.tensor(weights(name, shape)) for name, shape in shapes.items()}
    network.load_state_dict({**state, "encoder.embed_tokens.weight": state["shared.weight"]})
    attention = network.encoder.block[0].layer[0].SelfAttention
    distance = torch.arange(300)[None] - torch.arange(300)[:, None]
    with torch.no_grad():
        ids = torch.tensor(IDS).long()
        found = {
            "t5_names": json.dumps(shapes),
            "last": network(ids).last_hidden_state.numpy(),
            "masked": network(ids, torch.tensor(MASK).long()).last_hidden_state.numpy(),
        }
        for count, most in ((32, 128), (8, 20)):
            sorted_in = attention._relative_position_bucket(distance, True, count, most)
            # The first row and column have all distances.
            found[f"buckets_{count}"] = torch.cat([sorted_in[0], sorted_in[:, 0]]).int().numpy()
    np.savez_compressed(pathlib.Path(__file__).parent / "recorded_t5.npz", **found)
