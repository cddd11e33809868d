#!/usr/bin/env python3
"""Asks a server that serves the trained fixture its questions through lm_eval, and fails unless
the scores are those that Hugging Face transformers has (expected.json).
usage: gate.py URL [--slack SHARE]"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOKENIZER = HERE.parents[1] / "crates/gdn-model/tests/fixtures/qwen3_5_trained"


def scores(url, model, tasks, output):
    """The main metric of each task."""
    model_args = {
        "base_url": f"{url}/v1/completions",
        "model": model,
        "tokenizer": str(TOKENIZER),
        # The server of another model's tokenizer would say other numbers.
        "tokenizer_backend": "huggingface",
        "num_concurrent": 8,
        "max_length": 1024,
    }
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "local-completions",
        "--model_args", ",".join(f"{name}={value}" for name, value in model_args.items()),
        "--tasks", ",".join(tasks), "--include_path", ".", "--output_path", output,
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # The tasks name their files from their folder.
    done = subprocess.run(command, cwd=HERE, env={**os.environ, **offline}, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"lm_eval failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    (results,) = Path(output).rglob("results_*.json")
    found = json.loads(results.read_text())["results"]
    metric = lambda row: next(row[key] for key in row if key.startswith(("exact_match,", "acc,")))
    return {task: metric(found[task]) for task in tasks}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--slack", type=float, default=0.0, help="how far a score may be off, 0.02 is a question")
    args = parser.parse_args()
    url = args.url.rstrip("/")
    with urllib.request.urlopen(f"{url}/v1/models") as response:
        model = json.load(response)["data"][0]["id"]
    expected = json.loads((HERE / "expected.json").read_text())
    with tempfile.TemporaryDirectory() as output:
        found = scores(url, model, list(expected), output)
    wrong = 0
    for task, score in expected.items():
        right = abs(found[task] - score) <= args.slack + 1e-9
        wrong += not right
        print(f"{'ok  ' if right else 'FAIL'} {task:<24} {found[task]:.2f}, Hugging Face {score:.2f}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
