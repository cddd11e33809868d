#!/usr/bin/env python3
"""Times decode of a whole model on the CPU, one sequence, here and elsewhere, in one run.

The model has Qwen3.5-0.8B's shapes and random weights. The peers are Hugging Face
transformers and mistral.rs, each where it can be imported. All load the same folder and
take turns, a process each. README.md, beside this file, says how.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

try:
    import torch
except ImportError:
    sys.exit("model_cpu.py needs PyTorch: python3 -m pip install torch")

import dummy_model
from common import Failed, brief, note, run

BYTES = {"f32": 4, "bf16": 2}
WARM_UP = 4


# What runs in a process of its own


def transformers(folder, dtype, args):
    """Milliseconds of each step."""
    import transformers

    torch.set_num_threads(args.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    model = transformers.Qwen3_5ForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    ids, times = torch.full((1, args.context), ord("a")), []
    with torch.inference_mode():
        out = model(ids, use_cache=True, logits_to_keep=1)
        for _ in range(WARM_UP + args.steps):
            begin = time.perf_counter()
            token = out.logits[:, -1:].argmax(-1)
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
            times.append(1000 * (time.perf_counter() - begin))
    return times[WARM_UP:]


def mistralrs(folder, dtype, args):
    """The mean of the steps, as it measures it: the first token belongs to the prompt."""
    import mistralrs

    dtype = getattr(mistralrs.ModelDType, dtype.upper())
    which = mistralrs.Which.MultimodalPlain(model_id=str(folder), dtype=dtype)
    runner = mistralrs.Runner(which, prefix_cache_n=0)
    for steps in (WARM_UP, args.steps):
        request = mistralrs.CompletionRequest(
            prompt="a" * args.context,
            model="default",
            max_tokens=steps + 1,
            ignore_eos=True,
            temperature=0.0,
            top_k=1,
        )
        usage = runner.send_completion_request(request).usage
        found = (usage.prompt_tokens, usage.completion_tokens)
        if found != (args.context, steps + 1):
            raise ValueError(f"{found} tokens of prompt and answer")
    return [1000 * usage.total_completion_time_sec / steps]


PEERS = {
    "transformers bf16": (transformers, "transformers", "bf16"),
    "transformers f32": (transformers, "transformers", "f32"),
    "mistral.rs bf16": (mistralrs, "mistralrs", "bf16"),
    "mistral.rs f32": (mistralrs, "mistralrs", "f32"),
}


# The parent of those


def time_peer(name, folder, args):
    """Milliseconds a step: the median, or the mean where no more is known."""
    command = [sys.executable, __file__, "--peer", name, "--model", folder]
    command += ["--threads", args.threads, "--context", args.context, "--steps", args.steps]
    threads = str(args.threads)
    env = os.environ | {"RAYON_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
    env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env)
    if done.returncode != 0:
        raise Failed((done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1])
    return statistics.median(json.loads(done.stdout.splitlines()[-1]))


def time_gdn(folder, args, json_file):
    """Its milliseconds, what a step moves, and how fast memory is read, in bytes and GB/s."""
    flags = {"model": folder, "threads": args.threads, "batch-sizes": 1, "prompt-lens": 1}
    flags |= {"repeats": 1, "context": args.context, "steps": args.steps, "json": json_file}
    words = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
    run(args.gdn, "bench-model", *words)
    [row] = json.loads(json_file.read_text())["decode"]
    return row["median_ms"], row["bytes"], row["memory_gb_per_s"]


def measure(folder, weights, args):
    """All systems in turns, as many rounds as are asked for."""
    names = [name for name, (_, package, _) in PEERS.items() if available(name, package)]
    times, reads, moved = {name: [] for name in ["gdn bf16", *names]}, [], 0
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(args.rounds):
            ms, moved, read = time_gdn(folder, args, Path(scratch, "gdn.json"))
            times["gdn bf16"].append(ms)
            reads.append(read)
            note(f"round {number + 1}: gdn bf16 {ms:.1f} ms a token, memory {read:.1f} GB/s")
            for name in list(names):
                try:
                    times[name].append(time_peer(name, folder, args))
                except Failed as reason:
                    note(f"{name} does not run: {brief(reason)}")
                    names.remove(name)
                    continue
                note(f"round {number + 1}: {name} {times[name][-1]:.1f} ms a token")
    rows = []
    for name, ms in times.items():
        if ms:
            size = weights * BYTES[name.split()[-1]]
            median = statistics.median(ms)
            row = {"system": name, "ms": ms, "median_ms": median, "tokens_per_s": 1000 / median}
            rows.append(row | {"weight_bytes": size, "weight_gb_per_s": size / median / 1e6})
    return {"read_gb_per_s": reads, "gdn_bytes_moved": moved, "weights": weights, "rows": rows}


def available(name, package):
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        note(f"{name} is left out: no package {package}")
        return False
    return True


def table(report):
    read = max(report["read_gb_per_s"])
    lines = ["| system | tok/s | ms a token | weights, GB | GB/s | of read | gdn is faster by |"]
    lines.append("| --- " * 7 + "|")
    ours = report["rows"][0]["median_ms"]
    for row in report["rows"]:
        speed, ms = row["weight_gb_per_s"], row["median_ms"]
        cells = [row["system"], f"{row['tokens_per_s']:.2f}", f"{ms:.1f}"]
        cells += [f"{row['weight_bytes'] / 1e9:.2f}", f"{speed:.1f}", f"{speed / read:.2f}"]
        cells.append(f"{ms / ours:.2f}×" if row is not report["rows"][0] else "")
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(f"\nMemory is read at {read:.1f} GB/s, in the best of the rounds.")
    return "\n".join(lines)


def about(args):
    """The machine and the versions."""
    versions = {name: importlib.metadata.version(name) for name in ["torch"]}
    for _, package, _ in PEERS.values():
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    cpu = next((line for line in cpuinfo() if line.startswith("model name")), platform.machine())
    settings = {"threads": args.threads, "context": args.context, "steps": args.steps}
    date = time.strftime("%Y-%m-%d")
    return {"date": date, "cpu": cpu.split(":")[-1].strip(), "versions": versions} | settings


def cpuinfo():
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gdn", type=Path, help="the command")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--context", type=int, default=128, help="tokens before those timed")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--model", type=Path, help="a folder of dummy_model.py; else one is made")
    parser.add_argument("--out", type=Path, help="a folder for model_cpu.md and model_cpu.json")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    args = arguments()
    if args.peer:
        time_steps, _, dtype = PEERS[args.peer]
        print(json.dumps(time_steps(args.model, dtype, args)))
        return
    if not args.gdn:
        sys.exit("--gdn names the command to time")
    with tempfile.TemporaryDirectory() as made:
        folder = args.model or Path(made)
        if not args.model:
            note("writing a model")
            dummy_model.write(folder)
        report = about(args) | measure(folder, dummy_model.weights(folder), args)
    print(table(report))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "model_cpu.md").write_text(table(report) + "\n")
        (args.out / "model_cpu.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except Failed as reason:
        sys.exit(str(reason))
