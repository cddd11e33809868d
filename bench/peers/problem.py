"""What every system computes: a layer, a batch and its states, and the math in float64."""

from dataclasses import dataclass

import torch

DEVICE = "cuda"
K = V = 128  # head dims
W = 4  # taps of the convolution
EPS = 1e-6  # of the gated norm
STATES = {"f32": torch.float32, "bf16": torch.bfloat16}


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
