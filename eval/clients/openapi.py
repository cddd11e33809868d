#!/usr/bin/env python3
"""Schemathesis against a server, by the document that the server gives of itself: what it allows
must be taken, what it forbids refused, and every answer must be as described.
usage: openapi.py URL [--examples N] [--seed N]"""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile

import schemathesis

# What no document can say: it depends on the model, or on several fields at once.
REFUSED = [
    # The model's vocabulary, room and chat template.
    r"expected (a token|tokens) below",
    r"expected at most \d+ tokens",
    r"since the prompt has",
    r"^messages: (No user query found|System message must be at the beginning)",
    # Other fields.
    r"^best_of: expected 1, or n =",
    r"^n: expected at most \d+ answers in all",
    r"^top_logprobs: expected logprobs to be true",
    r"^tool_choice: expected (tools to choose from|.* one of tools)",
    r"^sampling_params: expected one object, or \d+ as there are prompts",
    # Schemathesis writes any JSON there: it does not read contentSchema.
    r"^messages\[\d+\]\.tool_calls\[\d+\]\.function\.arguments: expected an object",
    # Forms that are well written and can't be followed.
    r"^(regex|json_schema|tools|response_format\.json_schema\.schema): ",
]
TOKENS = 8


@schemathesis.hook
def before_call(context, case, kwargs):
    """An answer in a chat may be as long as there is room for: thousands of tokens."""
    body = case.body
    if case.path == "/v1/chat/completions" and isinstance(body, dict) and body.get("max_completion_tokens") is None:
        body.setdefault("max_tokens", TOKENS)


@schemathesis.hook
def filter_failure(context, failure, case, response):
    if type(failure).__name__ != "RejectedPositiveData" or response.status_code != 400:
        return True
    message = json.loads(response.content)["error"]["message"]
    return not any(re.search(rule, message) for rule in REFUSED)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--examples", type=int, default=40, help="random requests a route, beside those it makes of each field")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{args.url.rstrip('/')}/openapi.json", "--checks", "all",
        "--seed", args.seed, "--max-examples", args.examples, "--continue-on-failure", "--no-color",
        "--generation-database", "none", "--request-timeout", 120, "--max-response-time", 120,
        # A machine that is busy is no finding.
        "--suppress-health-check", "all",
    ]
    # Elsewhere, for it reads settings from the folder and leaves files in it.
    with tempfile.TemporaryDirectory() as folder:
        hooks = {**os.environ, "SCHEMATHESIS_HOOKS": os.path.realpath(__file__)}
        done = subprocess.run(list(map(str, command)), cwd=folder, env=hooks, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{done.stdout[-20000:]}\n{done.stderr[-3000:]}")
    print(done.stdout[done.stdout.rfind("= SUMMARY ="):])


if __name__ == "__main__":
    main()
