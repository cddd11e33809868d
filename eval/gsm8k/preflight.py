#!/usr/bin/env python3
"""Prints how many tokens fit a request: LENGTH, or what the server says. Fails where lm_eval would
ask another model thirty times over, or cut off shots without a word.
usage: preflight.py URL MODEL TOKENIZER [LENGTH]"""
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHOTS = 5
# lm_eval's default; the task has no other.
ANSWER = 256
# Of servers that do not say.
LENGTH = 4096


def served(url):
    key = os.environ.get("OPENAI_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"{url}/v1/models", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return {model["id"]: model for model in json.load(response)["data"]}
    except urllib.error.HTTPError as error:
        sys.exit(f"{url}/v1/models: {error}: {error.read(500).decode(errors='replace')}")
    except OSError as error:
        sys.exit(f"{url}/v1/models: {error}")


def longest(tokenizer):
    """Tokens of the longest question behind the longest shots: no prompt has more."""
    from transformers import AutoTokenizer

    encode = AutoTokenizer.from_pretrained(tokenizer).encode
    rows = lambda name: map(json.loads, (HERE / name).read_text().splitlines())
    tokens = lambda text: len(encode(text, add_special_tokens=False))
    shots = [tokens(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n") for row in rows("train.jsonl")]
    asked = max(tokens(f"Question: {row['question']}\nAnswer:") for row in rows("test.jsonl"))
    return sum(sorted(shots)[-SHOTS:]) + asked


def main():
    url, model, tokenizer, *length = sys.argv[1:]
    models = served(url)
    if model not in models:
        sys.exit(f"MODEL: expected one of {', '.join(models)}, got {model}")
    if length:
        # Who names it wants it so.
        print(int(length[0]))
        return
    length = models[model].get("max_model_len") or LENGTH
    prompt = longest(tokenizer)
    # lm_eval keeps one token back.
    if prompt + ANSWER + 1 > length:
        sys.exit(
            f"a request has {length} tokens, a prompt of {SHOTS} shots up to {prompt} and its answer "
            f"{ANSWER}: lm_eval would cut off shots without a word. Serve more, or set MAX_LENGTH to "
            "go on with what fits, best with fewer shots (--num_fewshot 2)"
        )
    print(length)


if __name__ == "__main__":
    main()
