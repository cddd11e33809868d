#!/usr/bin/env python3
"""Times one decode step of Gated DeltaNet here and elsewhere, on one GPU, in one run.

The peers are SGLang, FlashInfer and flash-linear-attention, each where it can be
imported. All get the same shapes, dtypes and cold slots, run in CUDA graphs, and
are first compared with the math in float64. README.md, beside this file, says how.
"""

import argparse
import importlib.metadata
import json
import math
import os
import random
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

try:
    import torch
except ImportError:
    sys.exit("peers.py needs PyTorch: python3 -m pip install torch")

from agreement import agree
from common import Failed, brief, capture, case, note, run
from problem import DEVICE, K, STATES, V, Problem
from systems import PEERS, load_peers

BATCHES = {(16, 32): [1, 8, 32, 128, 256], (8, 16): [1, 4, 16, 64]}
QUICK = {(16, 32): [1, 32], (8, 16): [4]}
COLD_BYTES = 480_000_000  # of states, before the turn of a slot comes again
LAUNCHES = 40  # in a graph


# Timing


def graphs_of(calls):
    """Two graphs or more that make every call, all with LAUNCHES launches."""
    calls[0]()  # compiles
    count = max(2, math.ceil(len(calls) / LAUNCHES))
    turns = [calls[i % len(calls)] for i in range(count * LAUNCHES)]
    return [
        capture(turns[i : i + LAUNCHES], kept=len(calls)) for i in range(0, len(turns), LAUNCHES)
    ]


def time_in_turns(columns, replays):
    """Microseconds a launch for each column of graphs; columns take turns in random order."""
    spans = {name: [] for name in columns}
    for _ in range(math.ceil(replays / min(map(len, columns.values())))):
        for name in random.sample(list(columns), len(columns)):
            graphs = columns[name]
            graphs[-1].replay()  # the GPU is busy while the host queues the rest
            events = [torch.cuda.Event(enable_timing=True) for _ in range(len(graphs) + 1)]
            events[0].record()
            for graph, event in zip(graphs, events[1:]):
                graph.replay()
                event.record()
            spans[name] += zip(events, events[1:])
    torch.cuda.synchronize()
    return {
        name: [1000 * start.elapsed_time(end) / LAUNCHES for start, end in pairs]
        for name, pairs in spans.items()
    }


def measure(peers, heads, batch, pool, state, replays, skip):
    """Times the peers on one shape, and a copy of as many bytes."""
    problem = Problem.random(heads, batch, pool, STATES[state])
    groups = pool // batch

    def in_groups(slots):
        # Each in memory of its own: Triton compiles for the alignment of a pointer.
        return [group.clone() for group in slots[: groups * batch].int().view(groups, batch)]

    shuffled = in_groups(torch.randperm(pool, device=DEVICE))
    in_order = in_groups(torch.arange(pool, device=DEVICE))
    columns, alive = {}, []  # a graph does not keep what its calls read
    for name, peer in peers.items():
        order = shuffled if peer.indexed else in_order
        for step in peer.columns:
            here = f"{name} {step}, {case(heads, batch, state)}"
            if here in skip:
                continue
            try:
                calls = [peer.steps(problem, slots)[step] for slots in order]
                alive.append(calls)
                graphs = graphs_of(calls)
                for graph in graphs:
                    graph.replay()
                torch.cuda.synchronize()
                columns[f"{name} {step}"] = graphs
            except Exception as reason:
                note(f"{here} does not run: {brief(reason)}")
                if is_fatal():
                    raise ContextLost(here) from reason
    source = problem.state[: groups * batch].view(groups, -1)
    target = torch.empty_like(source)
    pairs = list(zip(target, source))
    columns["copy by the driver"] = graphs_of([partial(to.copy_, of) for to, of in pairs])
    columns["copy by a kernel"] = graphs_of([partial(torch.neg, of, out=to) for to, of in pairs])
    return {name: summary(times) for name, times in time_in_turns(columns, replays).items()}


def is_fatal():
    """Whether the GPU's context is lost: no later call of this process can work."""
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


class ContextLost(Exception):
    """The GPU's context, by what its text names."""


def rows_of(args, peers, heads, state, folder):
    """Times everyone on some heads: ourselves before and after the peers."""
    batches = args.batch_sizes or (QUICK if args.quick else BATCHES).get(heads, [1, 32])
    slot_bytes = heads[1] * V * K * STATES[state].itemsize
    # Two batches at least: launches that follow one another share no slot.
    pool = max(2, math.ceil(COLD_BYTES / slot_bytes / max(batches))) * max(batches)
    note(f"timing {heads[0]}/{heads[1]} with {state} state, {pool} slots")

    def gdn():
        return [measure_gdn(args.gdn, heads, batches, pool, state, folder)] if args.gdn else []

    before = gdn()
    peers = {
        batch: measure(peers, heads, batch, pool, state, args.replays, args.skip)
        for batch in batches
    }
    runs = before + gdn()
    rows = []
    for batch in batches:
        row = {"batch": batch, "q_heads": heads[0], "v_heads": heads[1], "state": state}
        row |= {"slots": pool, "peers": peers[batch], "gdn": {}}
        for step in ("split", "packed", "chain", "fused", "copy"):
            row["gdn"][step] = [run[batch][f"{step}_us"]["median"] for run in runs]
        rows.append(row)
    return rows


def summary(times):
    lower, median, upper = statistics.quantiles(times, n=4)
    return {"median": median, "quartiles": [lower, upper], "replays": len(times)}


def measure_gdn(gdn, heads, batches, pool, state, folder):
    """The rows of `gdn bench`, by batch size."""
    file = folder / "gdn.json"
    shape = {"num-q-heads": heads[0], "num-v-heads": heads[1], "head-size-k": K, "head-size-v": V}
    flags = {"backend": DEVICE, "preset": "custom", **shape, "dtype": "bf16", "state-dtype": state}
    flags |= {"batch-sizes": ",".join(map(str, batches)), "pool-size": pool, "json": file}
    run(gdn, "bench", *(word for flag, value in flags.items() for word in (f"--{flag}", value)))
    return {row["batch"]: row for row in json.loads(file.read_text())["rows"]}


# Report


def table(rows, worst):
    """All rows, in Markdown."""
    columns = [f"{name} {step}" for name, peer in PEERS.items() for step in peer.columns]
    packed = [column for column in columns if not column.endswith("chain")]
    title = ["B", "H/HV", "state", "copy", "gdn packed", *packed, "best peer / gdn", "copy / gdn"]
    title += ["gdn chain", "gdn fused", "SGLang chain", "SGLang chain / gdn fused"]
    lines = [title, ["---"] * len(title)]
    for row in rows:
        times = {name: times["median"] for name, times in row["peers"].items()}
        times |= {f"gdn {step}": statistics.mean(both) for step, both in row["gdn"].items() if both}
        # The faster copy is the floor.
        times["copy"] = min(times[name] for name in times if name.startswith("copy"))
        # What updates a pool in place, and is right.
        in_place = [(name, peer) for name, peer in PEERS.items() if peer.indexed]
        rivals = [f"{name} {step}" for name, peer in in_place for step in peer.columns]
        rivals = [name for name in rivals if name in packed and worst.get(name, 0) <= 1]
        right = [times[name] for name in rivals if name in times]
        times["best peer"] = min(right, default=None)

        def cell(name):
            off = " (off)" if worst.get(name, 0) > 1 else ""
            return f"{times[name]:.2f}{off}" if name in times else "-"

        def ratio(name, to):
            return f"{times[name] / times[to]:.2f}" if times.get(name) and to in times else "-"

        cells = [str(row["batch"]), f"{row['q_heads']}/{row['v_heads']}", row["state"]]
        cells += map(cell, ["copy", "gdn packed", *packed])
        cells += [ratio("best peer", "gdn packed"), ratio("copy", "gdn packed")]
        cells += map(cell, ["gdn chain", "gdn fused", "SGLang chain"])
        cells.append(ratio("SGLang chain", "gdn fused"))
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def machine():
    """The GPU, the driver and the versions of all that is timed."""
    try:
        driver = run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split()[0]
    except (OSError, Failed):
        driver = "unknown"
    versions = {"driver": driver, "torch": torch.__version__}
    for name in ("triton", *(peer.distribution for peer in PEERS.values())):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "none"
    return {"gpu": torch.cuda.get_device_name(), "versions": versions}


def arguments():
    def heads(text):
        h, hv = map(int, text.split("/"))
        return h, hv

    def list_of(item):
        return lambda text: [item(word) for word in text.split(",")]

    def state(text):
        if text not in STATES:
            raise ValueError(text)
        return text

    about, _, more = __doc__.partition("\n")
    parser = argparse.ArgumentParser(description=about, epilog=more)
    add = parser.add_argument
    add("--gdn", type=Path, help="the command gdn; without it only the peers are timed")
    add("--decode-file", type=Path, help="default: examples/decode_file beside --gdn")
    add("--out", type=Path, required=True, help="a folder for peers.md and peers.json")
    add("--shapes", type=list_of(heads), default=list(BATCHES), metavar="H/HV,..")
    add("--batch-sizes", type=list_of(int), metavar="B,..", help="for every shape")
    add("--states", type=list_of(state), default=list(STATES), metavar="DTYPE,..")
    add("--replays", type=int, default=60, help="at least, of graphs, for a median")
    add("--skip", action="append", default=[], help="a column of a row, as it is noted if it fails")
    add("--quick", action="store_true", help="fewer rows, 30 replays")
    args = parser.parse_args()
    if args.quick:
        args.replays = 30
    beside = args.gdn and args.gdn.parent / "examples" / "decode_file"
    if not args.decode_file and beside and beside.exists():
        args.decode_file = beside
    return args


def main():
    args = arguments()
    if not torch.cuda.is_available():
        sys.exit("peers.py needs an NVIDIA GPU that PyTorch can use")
    args.out.mkdir(parents=True, exist_ok=True)
    report = machine()
    about = f"{report['gpu']}, " + ", ".join(map(" ".join, report["versions"].items()))
    note(about)
    random.seed(0)
    torch.manual_seed(0)
    peers = load_peers()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        worst = agree(peers, args.decode_file, Path(folder))
        if args.gdn and not args.decode_file:
            note("gdn is timed but not compared: it needs --decode-file")
        for state in args.states:
            for heads in args.shapes:
                rows += rows_of(args, peers, heads, state, Path(folder))
    text = f"{about}\n\nMicroseconds a launch:\n\n{table(rows, worst)}\n"
    print(text, end="")
    report |= {"error_over_tolerance": worst, "rows": rows}
    (args.out / "peers.md").write_text(text)
    (args.out / "peers.json").write_text(json.dumps(report, indent=1) + "\n")
    if worst.get("gdn packed", 0) > 1:
        sys.exit("gdn is off by more than the tolerance")


if __name__ == "__main__":
    try:
        main()
    except Failed as reason:
        sys.exit(str(reason))
    except ContextLost as lost:
        # Only a new process gets a good context: the same command, without what lost this one.
        note("the GPU's context is lost: starting again without it")
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.argv, "--skip", str(lost)])
