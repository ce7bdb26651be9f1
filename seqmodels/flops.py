"""Floating-point operations of a forward pass, counted as it runs (on fake tensors, where nothing is computed).

A multiply-add is two operations. Counted are matrix products, convolutions, FFTs, attention and this project's ops;
maps of single elements and norms are not: they move memory, they do not fill a machine.

| op | operations | |
|---|---|---|
| selective_scan | B L E (7 N + 1 + 2 [D] + 1 [gate]) | dt a, exp, (dt x) b, decay h, +, h c, sum; complex: 4 times |
| ssd | B L H P (5 N + 1 + 2 [D]) | decay h, (dt x) b, +, h c and its sum; by the recurrence, whatever the algorithm |
| causal_conv1d | 2 B L E W | |
| attention | 4 B H P (pairs of positions) | L (L + 1) / 2 pairs where it is causal |
| FFT | 2.5 n log2 n | of n real numbers |
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


def selective_scan_flops(x_BLE: Tensor, dt_BLE: Tensor, a_EN: Tensor, b: Tensor, c: Tensor, d: Any, z: Any) -> int:
    """Of the scan with skip and gate (Gu and Dao 2023, eq. 2)."""
    per_state = 7 * a_EN.shape[1] * (4 if a_EN.is_complex() else 1)
    return x_BLE.numel() * (per_state + 1 + 2 * (d is not None) + (z is not None))


def ssd_flops(x_BLHP: Tensor, dt_BLH: Tensor, a_H: Tensor, b_BLGN: Tensor, c_BLGN: Tensor, d: Any) -> int:
    """Of the recurrence (Dao and Gu 2024, eq. 1)."""
    return x_BLHP.numel() * (5 * b_BLGN.shape[-1] + 1 + 2 * (d is not None))


def causal_conv1d_flops(x_BLE: Tensor, weight_EW: Tensor) -> int:
    """Of one filter a channel."""
    return 2 * x_BLE.numel() * weight_EW.shape[1]


def attention_flops(q_BHLP: Tensor, k_BHTP: Tensor, is_causal: bool) -> int:
    """Of scores and weighted sums. A causal query sees its own position and what lies before it."""
    B, H, L, P = q_BHLP.shape
    T = k_BHTP.shape[2]
    pairs = L * (L + 1) // 2 + L * (T - L) if is_causal else L * T
    return 4 * B * H * P * pairs


# Name of an op of seqkernels, as it begins -> its formula, and how many of its arguments the formula takes.
OWN: Mapping[str, tuple[Callable[..., int], int]] = {
    "selective_scan": (selective_scan_flops, 7),
    "ssd": (ssd_flops, 6),
    "causal_conv1d": (causal_conv1d_flops, 2),
}
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu.default: 4,  # op -> place of is_causal among its arguments
    aten._scaled_dot_product_flash_attention.default: 4,
    aten._scaled_dot_product_efficient_attention.default: 6,
    aten._scaled_dot_product_cudnn_attention.default: 6,
}
FFTS = {aten._fft_r2c.default, aten._fft_c2r.default, aten._fft_c2c.default}


class FlopCount(TorchDispatchMode):
    """While it is entered, adds up the operations of every op, by part of a model.

    Args:
        parts: module -> the part that what runs inside it belongs to; the outermost named module counts.

    Attributes:
        by_part: operations so far; "other" for what runs outside every named module.
    """

    def __init__(self, parts: Mapping[nn.Module, str]):
        super().__init__()
        self.by_part: dict[str, int] = defaultdict(int)
        self._parts, self._inside, self._hooks = parts, [], []

    @property
    def total(self) -> int:
        return sum(self.by_part.values())

    def __enter__(self) -> FlopCount:
        for module, part in self._parts.items():
            self._hooks.append(module.register_forward_pre_hook(lambda *_, part=part: self._inside.append(part)))
            self._hooks.append(module.register_forward_hook(lambda *_: (self._inside.pop(), None)[1]))
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        super().__exit__(*args)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        count = operations(func, args, kwargs or {}, result)
        if count:
            self.by_part[self._inside[0] if self._inside else "other"] += count
        return result


def operations(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:
    """Of one call of one op; 0 for what is not counted."""
    if func.namespace == "seqkernels":
        name = func._schema.name.removeprefix("seqkernels::")
        for begins, (formula, taken) in OWN.items():
            if name.startswith(begins) and "backward" not in name:
                return formula(*args[:taken])
        return 0
    if func in ATTENTION:
        place = ATTENTION[func]
        causal = args[place] if len(args) > place else kwargs.get("is_causal", False)
        return attention_flops(args[0], args[1], bool(causal))
    if func in FFTS:
        return _fft_flops(args[0], args[1], result)
    formula = flop_registry.get(func.overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))


def _fft_flops(x: Tensor, dims: list[int], result: Tensor) -> int:
    longer = x if x.numel() >= result.numel() else result
    points = math.prod(longer.shape[dim] for dim in dims)
    both_complex = x.is_complex() and result.is_complex()
    return int((5 if both_complex else 2.5) * points * math.log2(max(points, 2)) * (longer.numel() // points))
