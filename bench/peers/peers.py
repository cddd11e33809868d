#!/usr/bin/env python3
"""Times one decode step of Gated DeltaNet here and elsewhere, on one GPU, in one run.

The peers are SGLang, FlashInfer and flash-linear-attention, each where it can be
imported. All get the same shapes, dtypes and cold slots, run in CUDA graphs, and
are first compared with the math in float64. README.md, beside this file, says how.
"""

import argparse
import ctypes
import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import random
import re
import site
import statistics
import struct
import subprocess
import sys
import tempfile
import types
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

try:
    import torch
except ImportError:
    sys.exit("peers.py needs PyTorch: python3 -m pip install torch")

DEVICE = "cuda"
K = V = 128  # head dims
W = 4  # taps of the convolution
EPS = 1e-6  # of the gated norm
BATCHES = {(16, 32): [1, 8, 32, 128, 256], (8, 16): [1, 4, 16, 64]}
QUICK = {(16, 32): [1, 32], (8, 16): [4]}
STATES = {"f32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {"f32": 5e-3, "bf16": 8e-3}  # relative L2, with bf16 activations
COLD_BYTES = 480_000_000  # of states, before the turn of a slot comes again
LAUNCHES = 40  # in a graph


# The problem and the math


@dataclass
class Problem:
    """A layer, the activations of a batch, and pools of states."""

    heads: tuple[int, int]  # H, HV
    mixed_qkv: torch.Tensor  # [B, C]
    a: torch.Tensor  # [B, HV]
    b: torch.Tensor  # [B, HV]
    z: torch.Tensor  # [B, HV, V]
    A_log: torch.Tensor  # [HV]
    dt_bias: torch.Tensor  # [HV]
    conv_weight: torch.Tensor  # [C, W]
    norm_weight: torch.Tensor  # [V]
    state: torch.Tensor  # [N, HV, V, K]
    conv_state: torch.Tensor  # [N, C, W - 1], oldest input first

    @staticmethod
    def random(heads, batch, pool, state_dtype):
        h, hv = heads
        channels = 2 * h * K + hv * V

        def normal(*shape, scale=1.0, dtype=torch.bfloat16):
            return torch.empty(shape, dtype=dtype, device=DEVICE).normal_(0, scale)

        return Problem(
            heads=heads,
            mixed_qkv=normal(batch, channels),
            a=normal(batch, hv),
            b=normal(batch, hv),
            z=normal(batch, hv, V),
            A_log=normal(hv, dtype=torch.float32),
            dt_bias=normal(hv, dtype=torch.float32),
            conv_weight=normal(channels, W, scale=0.5),
            norm_weight=1 + normal(V, scale=0.1),
            state=normal(pool, hv, V, K, scale=0.1, dtype=state_dtype),
            conv_state=normal(pool, channels, W - 1),
        )

    def split(self, mixed_qkv):
        """Views of q and k [B, H, K] and v [B, HV, V]."""
        h, hv = self.heads
        q, k, v = mixed_qkv.split([h * K, h * K, hv * V], dim=1)
        return q.unflatten(1, (h, K)), k.unflatten(1, (h, K)), v.unflatten(1, (hv, V))


def reference(p, slots, chain):
    """Output and new states [B, ..] of the slots, in float64; of padding, anything."""
    slots = slots.clamp(min=0)
    silu, softplus = torch.nn.functional.silu, torch.nn.functional.softplus
    x = p.mixed_qkv.double()
    if chain:
        taps = torch.cat([p.conv_state[slots].double(), x[:, :, None]], dim=2)
        x = silu((taps * p.conv_weight.double()).sum(2))

    def unit(x):
        x = x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()
        return x.repeat_interleave(p.heads[1] // p.heads[0], dim=1)

    q, k, v = p.split(x)
    q, k = unit(q) * K**-0.5, unit(k)
    decay = (-p.A_log.double().exp() * softplus(p.a.double() + p.dt_bias.double())).exp()
    beta = p.b.double().sigmoid()
    state = p.state[slots].double() * decay[:, :, None, None]
    u = beta[:, :, None] * (v - (state @ k[..., None]).squeeze(-1))
    state += u[..., None] * k[:, :, None, :]
    out = (state @ q[..., None]).squeeze(-1)
    if chain:
        rms = (out.square().mean(-1, keepdim=True) + EPS).sqrt()
        out = out / rms * p.norm_weight.double() * silu(p.z.double())
    return out, state


# The peers
#
# `steps(problem, slots)` gives, for each of a peer's `columns`, a call that queues
# the step and returns its output, and the new states unless they are in the pool.


def bare(*packages):
    """Registers packages but does not run their `__init__`, which would import a server."""
    for name in packages:
        parent, _, child = name.rpartition(".")
        if parent:
            folder = os.path.join(sys.modules[parent].__path__[0], child)
        elif spec := importlib.util.find_spec(name):
            folder = spec.submodule_search_locations[0]
        else:
            raise ImportError(f"{name} is not installed")
        stub(name, __path__=[folder])


def stub(name, **attributes):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(attributes)


class SGLang:
    """Its Triton kernels, and for its helpers what they say on an NVIDIA GPU."""

    distribution = "sglang"
    columns = ("packed", "split", "chain")
    indexed = True

    def __init__(self):
        ops = "sglang.kernels.ops"
        bare("sglang", "sglang.srt", "sglang.kernels", ops, f"{ops}.mamba")
        bare(f"{ops}.attention", f"{ops}.attention.fla", f"{ops}.attention.linear")
        major, minor = torch.cuda.get_device_capability()

        def no(*_):
            return False

        stub("sglang.kernels.jit")
        stub("sglang.kernels.jit.utils", is_arch_support_pdl=lambda: major >= 9)
        stub(
            "sglang.srt.utils",
            cdiv=lambda x, y: -(-x // y),
            cpu_has_amx_support=no,
            device_context=torch.cuda.device,
            get_device_sm=lambda: 10 * major + minor,
            is_cpu=no,
            is_cuda=lambda: True,
            is_gfx95_supported=no,
            is_hip=no,
            is_npu=no,
            is_sm90_supported=lambda: major == 9,
            next_power_of_2=lambda x: 1 << (x - 1).bit_length(),
        )
        release = tuple(map(int, re.findall(r"\d+", torch.__version__)[:3]))
        stub("sglang.srt.utils.common", torch_release=release)
        stub("sglang.srt.batch_invariant_ops", is_batch_invariant_mode_enabled=no)
        stub("sglang.srt.model_executor")
        stub(
            "sglang.srt.model_executor.cuda_graph_config",
            Backend=types.SimpleNamespace(TC_PIECEWISE=None),
            Phase=types.SimpleNamespace(PREFILL=None),
            check_cuda_graph_backend=no,
        )
        recurrent = importlib.import_module(f"{ops}.attention.fla.fused_recurrent")
        gating = importlib.import_module(f"{ops}.attention.linear.fused_sigmoid_gating_recurrent")
        conv = importlib.import_module(f"{ops}.mamba.causal_conv1d_triton")
        norm = importlib.import_module(f"{ops}.attention.fla.layernorm_gated")
        self.packed = recurrent.fused_recurrent_gated_delta_rule_packed_decode
        self.split = gating.fused_sigmoid_gating_delta_rule_update
        self.conv = conv.causal_conv1d_update
        self.norm = norm.rms_norm_gated

    def pads(self, state_dtype):
        return True

    def steps(self, p, slots):
        batch, hv = p.a.shape
        q, k, v = (x[None] for x in p.split(p.mixed_qkv))
        starts = torch.arange(batch + 1, dtype=torch.int32, device=DEVICE)

        def packed(mixed_qkv=p.mixed_qkv):
            out = mixed_qkv.new_empty(batch, 1, hv, V)
            self.packed(
                mixed_qkv=mixed_qkv,
                a=p.a,
                b=p.b,
                A_log=p.A_log,
                dt_bias=p.dt_bias,
                scale=K**-0.5,
                initial_state=p.state,
                out=out,
                ssm_state_indices=slots,
                use_qk_l2norm_in_kernel=True,
            )
            return out, None

        def split():
            out = self.split(
                A_log=p.A_log,
                a=p.a,
                dt_bias=p.dt_bias,
                softplus_beta=1.0,
                softplus_threshold=20.0,
                q=q,
                k=k,
                v=v,
                b=p.b,
                initial_state_source=p.state,
                initial_state_indices=slots,
                use_qk_l2norm_in_kernel=True,
                cu_seqlens=starts,
            )
            return out, None

        def chain():
            x = self.conv(
                p.mixed_qkv,
                p.conv_state,
                p.conv_weight,
                activation="silu",
                conv_state_indices=slots,
            )
            out, _ = packed(x)
            y = self.norm(
                x=out.view(-1, V),
                weight=p.norm_weight,
                bias=None,
                z=p.z.view(-1, V),
                eps=EPS,
                norm_before_gate=True,
                is_rms_norm=True,
            )
            return y, None

        return {"packed": packed, "split": split, "chain": chain}


class FlashInfer:
    """Its decode kernels in CuTe DSL."""

    distribution = "flashinfer-python"
    columns = ("packed",)
    indexed = True

    def __init__(self):
        bare("flashinfer", "flashinfer.jit", "flashinfer.gdn_kernels")
        bare("flashinfer.trace", "flashinfer.trace.templates")
        for kernels in ("gdn_decode_pretranspose", "gdn_decode_bf16_state"):
            # gdn_decode goes on without kernels that it can't import; here that is an error.
            importlib.import_module(f"flashinfer.gdn_kernels.{kernels}")
        module = importlib.import_module("flashinfer.gdn_decode")
        self.decode = module.gated_delta_rule_decode_pretranspose

    def pads(self, state_dtype):
        # With bf16 state a padding row writes to slot 0.
        return state_dtype == torch.float32

    def steps(self, p, slots):
        q, k, v = (x[:, None] for x in p.split(p.mixed_qkv))

        def packed():
            out = torch.empty_like(p.z)[:, None]
            self.decode(
                q,
                k,
                v,
                state=None,
                A_log=p.A_log,
                a=p.a[:, None],
                dt_bias=p.dt_bias,
                b=p.b[:, None],
                output=out,
                initial_state=p.state,
                initial_state_indices=slots,
            )
            return out, None

        return {"packed": packed}


class FlashLinearAttention:
    """Its recurrent kernel; it knows no slots, so the states of a batch are one block."""

    distribution = "fla-core"
    columns = ("packed",)
    indexed = False

    def __init__(self):
        module = importlib.import_module("fla.ops.gated_delta_rule")
        self.decode = module.fused_recurrent_gated_delta_rule

    def pads(self, state_dtype):
        return False

    def steps(self, p, slots):
        q, k, v = (x[:, None].contiguous() for x in p.split(p.mixed_qkv))
        first = int(slots[0])
        state = p.state[first : first + len(slots)]

        def packed():
            return self.decode(
                q,
                k,
                v,
                g=p.a[:, None],
                beta=p.b[:, None],
                initial_state=state,
                output_final_state=True,
                use_qk_l2norm_in_kernel=True,
                use_gate_in_kernel=True,
                A_log=p.A_log,
                dt_bias=p.dt_bias,
                use_beta_sigmoid_in_kernel=True,
                state_v_first=True,
            )

        return {"packed": packed}


PEERS = {"SGLang": SGLang, "FlashInfer": FlashInfer, "fla": FlashLinearAttention}


def load_peers():
    """The peers that can be imported."""
    for path in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        site.addsitedir(path)  # Python reads no .pth files there by itself
    peers = {}
    for name, peer in PEERS.items():
        try:
            peers[name] = peer()
        except Exception as reason:
            note(f"{name} is left out: {brief(reason)}")
    return peers


# Agreement


def agree(peers, decode_file, folder):
    """Compares all with the reference: for each column its worst error over the tolerance."""
    worst = {}

    def compare(name, heads, batch, state, chain, slots, result):
        where = case(heads, batch, state)
        # The chain rounds to bf16 twice on its way.
        tolerance = TOLERANCE[state] * (2 if chain else 1)
        problem = Problem.random(heads, batch, 2 * batch, STATES[state])
        try:
            errors = differences(problem, slots, result(problem), chain)
        except Exception as reason:
            note(f"{name} does not run {where}: {brief(reason)}")
            # Some peers have no kernel for some shapes; we have.
            errors = [math.inf] if name.startswith("gdn") else [0]
        else:
            verdict = "ok" if max(errors) <= tolerance else f"OFF, more than {tolerance:.0e}"
            note(f"{name:<18} {where:<24} out {errors[0]:.1e}, state {errors[1]:.1e}: {verdict}")
        worst[name] = max(worst.get(name, 0), max(errors) / tolerance)

    for heads, batch in [((16, 32), 4), ((8, 16), 3)]:
        for state, dtype in STATES.items():
            for name, peer in peers.items():
                slots = some_slots(batch, peer.indexed, peer.pads(dtype))
                for step in peer.columns:
                    result = partial(replay_once, peer, step, slots)
                    compare(f"{name} {step}", heads, batch, state, step == "chain", slots, result)
            if decode_file:
                slots = some_slots(batch, indexed=True, pads=True)
                result = partial(run_decode_file, decode_file, folder, slots)
                compare("gdn packed", heads, batch, state, False, slots, result)
    return worst


def some_slots(batch, indexed, pads):
    """Falling slots with gaps and a row of padding; of that, what the peer can take."""
    if not indexed:
        return torch.arange(1, batch + 1, dtype=torch.int32, device=DEVICE)
    slots = torch.arange(2 * batch - 1, 0, -2, dtype=torch.int32, device=DEVICE)
    if pads:
        slots[1] = -1
    return slots


def differences(p, slots, got, chain):
    """The relative L2 errors of output and state; infinite where nothing may change and does."""

    def error(got, expected):
        error = float((got.double() - expected).norm() / expected.norm())
        return math.inf if math.isnan(error) else error

    live = slots >= 0
    (out, pool), (expected_out, expected_state) = got, reference(p, slots, chain)
    others = torch.ones(len(p.state), dtype=torch.bool, device=DEVICE)
    others[slots[live]] = False
    intact = torch.equal(pool[others], p.state[others])
    state = error(pool[slots[live]], expected_state[live]) if intact else math.inf
    return error(out[live], expected_out[live]), state


def replay_once(peer, step, slots, p):
    """Output and pool after a graph of the step ran once; the problem stays as it was."""
    work = replace(p, state=p.state.clone(), conv_state=p.conv_state.clone())
    call, results = peer.steps(work, slots)[step], []
    call()  # compiles
    graph = capture([lambda: results.append(call())])
    work.state.copy_(p.state)
    work.conv_state.copy_(p.conv_state)
    graph.replay()
    out, rows = results[0]
    if rows is not None:
        work.state[slots] = rows.to(work.state.dtype)
    torch.cuda.synchronize()
    return out.reshape(p.z.shape), work.state


def run_decode_file(program, folder, slots, p):
    source, target = folder / "in.safetensors", folder / "out.safetensors"
    names = ("mixed_qkv", "a", "b", "A_log", "dt_bias", "state")
    tensors = {name: getattr(p, name) for name in names} | {"slots": slots}
    write_safetensors(source, tensors, {"q_heads": str(p.heads[0])})
    run(program, "--backend", DEVICE, source, target)
    result = {name: tensor.to(DEVICE) for name, tensor in read_safetensors(target).items()}
    if result["out"][slots < 0].any():
        raise ValueError("a row of padding is not zero")
    return result["out"], result["state"]


SAFETENSORS = {"F32": torch.float32, "BF16": torch.bfloat16, "I32": torch.int32}


def write_safetensors(path, tensors, metadata):
    header, data = {"__metadata__": metadata}, b""
    for name, tensor in tensors.items():
        tensor = tensor.cpu().contiguous()
        dtype = next(key for key, dtype in SAFETENSORS.items() if dtype == tensor.dtype)
        span = [len(data), len(data) + tensor.nbytes]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": span}
        data += ctypes.string_at(tensor.data_ptr(), tensor.nbytes)
    header = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def read_safetensors(path):
    data = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, info in header.items():
        begin, end = info["data_offsets"]
        values = torch.frombuffer(data[start + begin : start + end], dtype=torch.uint8)
        tensors[name] = values.view(SAFETENSORS[info["dtype"]]).view(info["shape"])
    return tensors


# Timing


def capture(calls, kept=0):
    """A graph of the calls. It keeps the last results alive, so that the next lie elsewhere."""
    graph, results = torch.cuda.CUDAGraph(), deque(maxlen=kept)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for call in calls:
            results.append(call())
    return graph


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
