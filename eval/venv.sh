#!/usr/bin/env bash
# Makes a virtual environment with what the scripts here need, once, and prints its Python.
# It lies in target/eval-venv, or where GDN_EVAL_VENV says; some 0.7 GB, no torch.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
venv="${GDN_EVAL_VENV:-$here/../target/eval-venv}"
wanted="$here/requirements.txt"

if ! cmp -s "$wanted" "$venv/requirements.txt"; then
    {
        rm -rf "$venv"
        "${PYTHON:-python3}" -m venv "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$wanted"
        # Last: an environment that broke off is made again.
        cp "$wanted" "$venv/requirements.txt"
    } >&2
fi
echo "$venv/bin/python"
