"""The peers, each behind one small adapter, and imported without the servers around them."""

import importlib.util
import os
import re
import site
import sys
import types

import torch

from common import brief, note
from problem import DEVICE, EPS, K, V


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
