"""What the parts of the script share: notes, failures, commands, graphs."""

import subprocess
import sys
from collections import deque

import torch


def case(heads, batch, state):
    return f"B={batch}, {heads[0]}/{heads[1]}, {state} state"


def note(line):
    print(line, file=sys.stderr, flush=True)


def brief(reason):
    """The first line of an error, in a line."""
    return f"{type(reason).__name__}: {reason}".splitlines()[0][:200]


class Failed(Exception):
    """A command that we started."""


def run(*command):
    command = list(map(str, command))
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def capture(calls, kept=0):
    """A graph of the calls. It keeps the last results alive, so that the next lie elsewhere."""
    graph, results = torch.cuda.CUDAGraph(), deque(maxlen=kept)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for call in calls:
            results.append(call())
    return graph
