"""Launches the kernels of this folder: how each is cut, and the buffers between them.

A step of a block between its projections is `convolve` and `scan`; a step of a whole block for few rows is
`project_in`, `scan` and `project_out`. All sizes are compiled in, so every function here looks up one compiled kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from seqkernels import nvrtc
from seqkernels.dispatch import constant

_FOLDER = Path(__file__).parent
ELEMENT = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # ELEMENT of common.cuh
_MOST_SHARED = 48 * 1024  # of a block, without asking for more
_SHARES_BYTES = 40 * 1024  # of which shares of x_proj of one row may take
_MOST_CHANNELS = 128  # of `convolve`: a thread holds their weights


class Sizes(NamedTuple):
    """What the kernels are compiled for: model width (0 where it plays no part), channels, states, rank, taps."""

    D: int
    E: int
    N: int
    R: int
    W: int

    @property
    def row_partial(self) -> int:
        """Floats of a row of partial sums of x_proj: R + 2 N, in whole quads."""
        return -(-(self.R + 2 * self.N) // 4) * 4

    @property
    def outputs(self) -> int:
        """Outputs of x_proj in whole warps."""
        return -(-(self.R + 2 * self.N) // 32) * 32


class Projection(NamedTuple):
    """A cut of `project_in` or `project_out`: warps a block, rows of the weight a warp."""

    warps: int
    rows: int


class Convolve(NamedTuple):
    """A cut of `convolve`: channels and rows of the batch a block, teams of threads that share the channels.

    `tensor_cores` multiplies by x_proj there (bf16, 8 to 16 rows, 16 channels or a multiple).
    """

    channels: int
    rows: int
    teams: int
    tensor_cores: bool = False

    def threads(self, size: Sizes) -> int:
        """A team is a thread for each output of x_proj, in whole warps; then up to a multiple of the channels."""
        step = math.lcm(32, self.channels)
        return -(-self.teams * size.outputs // step) * step


class Scan(NamedTuple):
    """A cut of `scan`: channels a block, lanes a channel, rows of the batch a block."""

    channels: int
    lanes: int
    rows: int

    def shared_bytes(self, size: Sizes, shares: int, element_bytes: int) -> int:
        """Shared memory of a block: shares and their sums, rows of dt_proj where each has one thread, step sizes."""
        whole_ranks = self.lanes <= self.rows and size.R % 8 == 0
        ranks = self.channels * (size.R * element_bytes + 16) if whole_ranks else 16 * element_bytes
        return (shares + 1) * self.rows * size.row_partial * 4 + ranks + self.rows * self.channels * 8


def plan_step(size: Sizes, B: int, dtype: torch.dtype) -> tuple[Convolve, Scan] | None:
    """Cuts of `convolve` and `scan`, or None where none fits a block; chosen by measurement on one H200.

    Few rows: many small blocks, for one trip through memory is what takes time. Many: several rows to a block, which
    read the weights once, and fewer shares of x_proj to add up; in bf16 on tensor cores, 6 % less for both kernels.
    """
    rows, most_channels = (min(B, 4), 16) if B < 16 else (8, 64) if B < 64 else (8, 128)
    convolve = plan_convolve(size, rows, most_channels)
    if convolve is None:
        return None
    if B >= 64 and dtype == torch.bfloat16 and convolve.channels % 16 == 0:
        convolve = convolve._replace(tensor_cores=True)
    scan = plan_scan(size, B, size.E // convolve.channels, dtype.itemsize)
    return None if scan is None else (convolve, scan)


def plan_convolve(size: Sizes, rows: int, most_channels: int) -> Convolve | None:
    """The most channels up to a bound (above it if need be), so that there are not more shares than `scan` takes."""
    fewest = -(-size.E * size.row_partial * 4 // _SHARES_BYTES)
    for channels in (*range(most_channels, 0, -8), *range(most_channels + 8, _MOST_CHANNELS + 8, 8)):
        if size.E % channels or not fewest <= channels <= _MOST_CHANNELS:
            continue
        for teams in (4, 2, 1):
            cut = Convolve(channels, rows, teams)
            if channels % (8 * teams) == 0 and cut.threads(size) <= 768:
                return cut
    return None


def plan_scan(size: Sizes, B: int, shares: int, element_bytes: int) -> Scan | None:
    """Few rows: a lane a state. Many: up to 8 states a lane, and as many rows as registers and memory allow."""
    lanes, rows, threads = (16, 1, 512) if B < 16 else (4, 4, 256) if B < 64 else (2, 4, 256)
    lanes = math.gcd(size.N, max(lanes, min(32, size.N // 8)))  # not more states a lane than there are registers for
    while rows > 1 and rows * size.N // lanes > 32:
        rows //= 2
    if size.N // lanes > 32:
        return None
    while True:
        for channels in range(threads // lanes, 0, -1):
            cut = Scan(channels, lanes, rows)
            whole = size.E % channels == 0 and channels * lanes % 32 == 0
            if whole and cut.shared_bytes(size, shares, element_bytes) <= _MOST_SHARED:
                return cut
        if rows == 1:
            return None
        rows //= 2


def plan_block(
    size: Sizes, B: int, element_bytes: int, processors: int
) -> tuple[Projection, Scan, Projection] | None:
    """Cuts of `project_in`, `scan` and `project_out`, or None where none fits a block."""
    if size.D % 8 or size.E % 8:
        return None
    cut_in = plan_project_in(size, B, element_bytes, processors)
    scan = None if cut_in is None else plan_scan(size, B, size.E // (cut_in.warps * cut_in.rows), element_bytes)
    if cut_in is None or scan is None:
        return None
    return cut_in, scan, plan_project_out(size, B, element_bytes, processors)


def plan_project_in(size: Sizes, B: int, element_bytes: int, processors: int) -> Projection | None:
    """One wave of blocks where a lane's registers have room for it, and not more shares of x_proj than `scan` takes."""
    most_rows = _rows_in_registers(size.D, B, element_bytes)
    fewest = -(-size.E * size.row_partial * 4 // _SHARES_BYTES)  # channels of a block
    cuts = [Projection(warps, rows) for warps in (8, 16) for rows in range(1, most_rows + 1)]
    cuts = [cut for cut in cuts if size.E % (cut.warps * cut.rows) == 0 and cut.warps * cut.rows >= fewest]
    one_wave = [cut for cut in cuts if cut.warps * cut.rows * processors >= 2 * size.E]
    return next(iter(one_wave), cuts[-1] if cuts else None)


def plan_project_out(size: Sizes, B: int, element_bytes: int, processors: int) -> Projection:
    """The same, with nothing that has to divide."""
    return Projection(8, min(_rows_in_registers(size.E, B, element_bytes), -(-size.D // (8 * processors))))


def _rows_in_registers(length: int, B: int, element_bytes: int) -> int:
    """Rows of a weight that a warp may hold at most: 48 registers, and a lane to finish each row of each B."""
    pieces = -(-length // 256) * max(1, element_bytes // 2)  # 16 bytes a lane
    return max(1, min(12 // pieces, 32 // B))


_seen: WeakIdKeyDictionary = WeakIdKeyDictionary()  # weight -> its version when a step last took it


def unchanged(weights: Iterable[Tensor | None]) -> bool:
    """Whether every weight has been seen as it is by an earlier step, so that no kernel still writes it.

    Kernels read their weights before they wait for the kernel in front of them; that one may be an optimizer's, or the
    conversion of a weight to another dtype.
    """
    changed = False
    for weight in weights:
        if weight is not None:
            version = None if weight.is_inference() else weight._version
            if version is None or _seen.get(weight) != version:
                _seen[weight], changed = version, True
    return not changed


@constant
def processors(index: int) -> int:
    """Multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(index).multi_processor_count


def _kernel(name: str, args: str, size: Sizes, x: Tensor, **defines: int) -> nvrtc.Kernel:
    macros = {**size._asdict(), "ELEMENT": ELEMENT[x.dtype], **defines}
    return nvrtc.kernel(_FOLDER / f"{name}.cu", name, args, macros, x.device.index)


def convolve(
    xz: Tensor,
    conv_state: Tensor,
    new_conv_state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    size: Sizes,
    cut: Convolve,
) -> tuple[Tensor, Tensor]:
    """Returns the convolved signal (B, E) and the shares of x_proj (shares, B, row_partial), both fp32.

    Begins when all before it has ended, so that `scan` behind it finds weights and states settled.
    """
    B = xz.shape[0]
    shares = size.E // cut.channels
    signal = torch.empty(B, size.E, dtype=torch.float32, device=xz.device)
    partial = torch.empty(shares, B, size.row_partial, dtype=torch.float32, device=xz.device)
    threads = cut.threads(size)
    defines = {"CHANNELS": cut.channels, "ROWS": cut.rows, "TEAMS": cut.teams, "THREADS": threads}
    defines["TENSOR_CORES"] = int(cut.tensor_cores)
    _kernel("convolve", "ConvolveArgs", size, xz, **defines).launch(
        (shares, -(-B // cut.rows)),
        threads,
        False,
        xz=xz,
        conv_weight=conv_weight,
        conv_bias=conv_bias,
        x_proj=x_proj,
        conv_state=conv_state,
        new_conv_state=new_conv_state,
        signal=signal,
        partial=partial,
        stride_xz=xz.stride(0),
        B=B,
    )
    return signal, partial


def scan(
    signal: Tensor,
    z: Tensor,
    partial: Tensor,
    state: Tensor,
    new_state: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    a: Tensor,
    d: Tensor,
    size: Sizes,
    cut: Scan,
    settled: bool,
) -> Tensor:
    """Returns the gated output y (B, E) in dt_proj's dtype; z (B, E) may be strided, fp32 or of that dtype too.

    `settled`: the kernel in front began when all before it had ended, so nothing still writes the states.
    """
    B = signal.shape[0]
    y = torch.empty(B, size.E, dtype=dt_proj.dtype, device=signal.device)
    defines = {"CHANNELS": cut.channels, "LANES": cut.lanes, "ROWS": cut.rows, "SHARES": partial.shape[0]}
    gate_float = int(z.dtype == torch.float32)
    _kernel("scan", "ScanArgs", size, y, GATE_FLOAT=gate_float, **defines).launch(
        (size.E // cut.channels, -(-B // cut.rows)),
        cut.channels * cut.lanes,
        True,
        x=signal,
        z=z,
        partial=partial,
        dt_proj=dt_proj,
        dt_bias=dt_bias,
        a=a,
        d=d,
        state=state,
        new_state=new_state,
        y=y,
        stride_z=z.stride(0),
        row_partial=partial.shape[2],
        settled=int(settled),
        B=B,
    )
    return y


class NormedInput(NamedTuple):
    """What `project_in` makes, all fp32: residual (B, D), signal and gate (B, E), shares of x_proj."""

    residual: Tensor
    signal: Tensor
    gate: Tensor
    partial: Tensor


def project_in(
    x: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor,
    eps: float,
    in_proj: Tensor,
    in_bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    conv_state: Tensor,
    new_conv_state: Tensor,
    size: Sizes,
    cut: Projection,
    early: bool,
) -> NormedInput:
    """Residual add, norm, in_proj, convolution and shares of x_proj for few rows.

    `early`: begin before the kernel in front has ended. That one must not have written any weight (see `unchanged`).
    """
    B, channels = x.shape[0], cut.warps * cut.rows

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.float32, device=x.device)

    made = NormedInput(
        empty(B, size.D), empty(B, size.E), empty(B, size.E), empty(size.E // channels, B, size.row_partial)
    )
    _kernel("project_in", "InputArgs", size, x, BATCH=B, WARPS=cut.warps, ROWS=cut.rows).launch(
        2 * size.E // channels,
        32 * cut.warps,
        early,
        x=x,
        residual=residual,
        norm_weight=norm_weight,
        in_proj=in_proj,
        in_bias=in_bias,
        conv_weight=conv_weight,
        conv_bias=conv_bias,
        x_proj=x_proj,
        conv_state=conv_state,
        new_conv_state=new_conv_state,
        new_residual=made.residual,
        signal=made.signal,
        gate=made.gate,
        partial=made.partial,
        eps=eps,
    )
    return made


def project_out(y: Tensor, weight: Tensor, bias: Tensor | None, size: Sizes, cut: Projection) -> Tensor:
    """out_proj for few rows: (B, D) in y's dtype."""
    B = y.shape[0]
    out = torch.empty(B, size.D, dtype=y.dtype, device=y.device)
    _kernel("project_out", "OutputArgs", size, y, BATCH=B, WARPS=cut.warps, ROWS=cut.rows).launch(
        -(-size.D // (cut.warps * cut.rows)), 32 * cut.warps, True, y=y, weight=weight, bias=bias, out=out
    )
    return out
