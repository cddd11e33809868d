"""Whether all systems compute the same: small batches against float64, before any timing."""

import ctypes
import json
import math
import struct
from dataclasses import replace
from functools import partial

import torch

from common import brief, capture, case, note, run
from problem import DEVICE, STATES, Problem, reference

TOLERANCE = {"f32": 5e-3, "bf16": 8e-3}  # relative L2, with bf16 activations


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
