#!/usr/bin/env python3
"""Writes a folder with a model of Qwen3.5-0.8B's shapes and random weights, as published ones lie:
bf16, a vision tower (a tiny one, which text leaves alone), config.json and tokenizer.json.

Its tokenizer has the 256 bytes and the special tokens, so an ASCII letter is a token; ids
beyond are no text.
"""

import argparse
import importlib
import json
import math
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

FIXTURES = Path(__file__).parents[2] / "crates/gdn-model/tests/fixtures"
SHAPE = {"hidden_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2}
SHAPE |= {"vocab_size": 248320, "max_position_embeddings": 262144}
INTERMEDIATE = 3584
KIND = "qwen3_5_dense"


def write(folder, layers=24, seed=0):
    sys.path.insert(0, str(FIXTURES))
    tiny = importlib.import_module("make_tiny_qwen")
    transformers = importlib.import_module("transformers")
    tiny.N_BASE = 256
    tiny.COMMON.update(SHAPE, eos_token_id=tiny.N_BASE)
    tiny.GDN.update(linear_num_key_heads=16, linear_num_value_heads=16)
    tiny.LAYERS[KIND] = layers
    text = tiny.text_config(KIND)
    text.intermediate_size = INTERMEDIATE
    config = tiny.published_config(KIND, text)
    config["text_config"].update(intermediate_size=INTERMEDIATE, mtp_num_hidden_layers=0)

    generator, tensors = torch.Generator().manual_seed(seed), {}
    with torch.device("meta"):
        model = transformers.Qwen3_5ForCausalLM(text)
        tower = transformers.Qwen3_5Config(**config).vision_config
        tower = transformers.models.qwen3_5.modeling_qwen3_5.Qwen3_5VisionModel(tower)
    shapes = tiny.to_published(KIND, model.state_dict())
    del shapes["lm_head.weight"]  # tied
    shapes |= {f"model.visual.{name}": tensor for name, tensor in tower.state_dict().items()}
    for name, shape in shapes.items():
        [values] = tiny.init_({name: shape}, generator).values()
        tensors[name] = values.to(tiny.store_dtype(KIND, name))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tiny.make_tokenizer(str(folder / "tokenizer.json"), None)
    files = {"config": config, "tokenizer_config": {"tokenizer_class": "Qwen2Tokenizer"}}
    patches = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    patches |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    patches |= {"size": {"shortest_edge": 65536, "longest_edge": 16777216}}
    patches["image_processor_type"] = "Qwen2VLImageProcessorFast"
    files["preprocessor_config"] = patches
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def weights(folder):
    """How many the text model has."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if not name.startswith("model.visual.")]
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=24)
    args = parser.parse_args()
    write(args.folder, args.layers)
    print(f"{weights(args.folder) / 1e9:.3f} B weights of text")
