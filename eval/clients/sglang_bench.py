#!/usr/bin/env python3
"""SGLang 0.5.9's bench_serving, as it is published, against a server of the trained fixture.
usage: sglang_bench.py URL"""
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path

TOKENIZER = Path(__file__).resolve().parents[2] / "crates/gdn-model/tests/fixtures/qwen3_5_trained"
VERSION = "0.5.9"
PROMPTS, INPUT, OUTPUT = 24, 16, 12


def script():
    """The one file of the wheel that is needed; its others want torch."""
    folder = Path(sys.prefix) / f"sglang-{VERSION}"
    path = folder / "sglang/bench_serving.py"
    if not path.is_file():
        with tempfile.TemporaryDirectory() as download:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", download]
            subprocess.run([*pip, f"sglang=={VERSION}"], check=True)
            (wheel,) = Path(download).glob("*.whl")
            zipfile.ZipFile(wheel).extract("sglang/bench_serving.py", folder)
    return path


def bench(url, backend, output):
    command = [
        sys.executable, script(), "--backend", backend, "--base-url", url,
        "--dataset-name", "random-ids", "--random-input-len", INPUT, "--random-output-len", OUTPUT,
        "--random-range-ratio", 1, "--num-prompts", PROMPTS, "--max-concurrency", 8,
        "--tokenizer", TOKENIZER, "--output-file", output, "--output-details", "--disable-tqdm",
    ]
    if backend == "sglang-oai-chat":
        # It does not see thoughts.
        command += ["--extra-request-body", '{"chat_template_kwargs": {"enable_thinking": false}}']
    # A model by that name is looked for on disk to see whether it chats.
    command += ["--model", TOKENIZER, "--served-model-name", served(url)]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(list(map(str, command)), env=offline, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return json.loads(Path(output).read_text()), done.stdout


def served(url):
    with urllib.request.urlopen(f"{url}/v1/models") as response:
        return json.load(response)["data"][0]["id"]


def main():
    url = sys.argv[1].rstrip("/")
    for backend in ("sglang-oai", "sglang", "sglang-oai-chat"):
        with tempfile.TemporaryDirectory() as folder:
            result, printed = bench(url, backend, f"{folder}/bench.jsonl")
        assert result["completed"] == PROMPTS, printed
        assert not any(result["errors"]), result["errors"]
        assert result["total_output_tokens"] == PROMPTS * OUTPUT, printed
        assert result["output_lens"] == [OUTPUT] * PROMPTS
        assert result["median_ttft_ms"] > 0 and result["median_tpot_ms"] > 0, printed
        # Answers come token by token, and not as a whole at the end.
        assert sum(map(len, result["itls"])) > PROMPTS * OUTPUT // 2, printed
        assert result["server_info"] is not None, printed
        print(f"ok   {backend}", flush=True)


if __name__ == "__main__":
    main()
