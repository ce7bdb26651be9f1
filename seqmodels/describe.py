"""What a model is and costs, without building it: parameters, operations, state, memory of training and of inference.

    from seqmodels.describe import describe
    facts = describe(model_spec(backbone, head, vocab_size=12), length=2**20)
    facts.training[0].peak_bytes, facts.flops_per_token, facts.state_bytes

Nothing is fitted. A step runs on fake tensors, which have shapes and no memory, with the implementations that an NVIDIA
GPU takes; what is alive at one time is added up. So every layer, recompute setting and precision is covered by being
what it is. Not seen: what an op allocates inside itself, cuBLAS's workspace, fragmentation. Peaks measured so far lie
up to 2 % above the estimate (experiments/describe).
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from seqkernels.dispatch import Planned, planned_for_gpu
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from seqmodels.data.record import Batch
from seqmodels.flops import FlopCount
from seqmodels.inference.generate import PREFILL_CHUNK
from seqmodels.instantiate import build
from seqmodels.layers.base import SequenceLayer, require_positive
from seqmodels.layers.state import State, state_bytes
from seqmodels.live_memory import LiveMemory
from seqmodels.model import SequenceModel

GIB = 2**30
OVERHEAD_BYTES = GIB  # CUDA's context and library workspaces, beside what tensors take
COMMON_GPUS = {"24 GB": int(23.5 * GIB), "80 GB": int(79.2 * GIB), "141 GB (H200)": int(139.8 * GIB)}
PRECISIONS = ("bf16-mixed", "32-true")
SEQUENTIAL_LENGTHS = (64, 128)  # traced for layers that run position by position; what follows is linear


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Of one optimizer step on one GPU, in bytes.

    Attributes:
        gpu: its name, or its size.
        gpu_bytes: its memory.
        weights_bytes: parameters, in fp32 (beside them bf16 copies are activations).
        gradients_bytes: as large.
        optimizer_bytes: the optimizer's state.
        activations_bytes: what forward leaves for backward.
        peak_bytes: the most that is alive at one time.
        longest: about how long sequences can be on this GPU at the same batch size.
    """

    gpu: str
    gpu_bytes: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    peak_bytes: int
    longest: int

    @property
    def fits(self) -> bool:
        """Whether it fits, with room for what is not tensors."""
        return self.peak_bytes + OVERHEAD_BYTES <= self.gpu_bytes


@dataclass(frozen=True, slots=True)
class Description:
    """What `describe` found.

    Attributes:
        length: positions L of a sequence.
        batch: sequences of a batch.
        precision: of training.
        parameters: all, a tied table once.
        parameters_by_part: "embedding", a layer's class name, "norms", "pooling", "head", "other" -> parameters.
        flops_per_token: of a forward pass at this length; a training step is about three times that.
        flops_by_part: the same by part.
        state_bytes: of one sequence after L positions; None where nothing is carried (a model that is not causal).
        state_bytes_at_start: after one position; smaller where the state grows.
        training: one entry a GPU.
        reading_bytes: peak of reading a batch of L positions without gradients, in pieces, weights included.
    """

    length: int
    batch: int
    precision: str
    parameters: int
    parameters_by_part: dict[str, int]
    flops_per_token: float
    flops_by_part: dict[str, float]
    state_bytes: int | None
    state_bytes_at_start: int | None
    training: tuple[TrainingMemory, ...]
    reading_bytes: int


def describe(
    spec: Mapping[str, Any],
    *,
    length: int,
    batch: int = 1,
    precision: str = "bf16-mixed",
    optimizer_bytes_per_parameter: float = 8.0,
    gpus: Mapping[str, int] = COMMON_GPUS,
) -> Description:
    """Adds up what a model costs.

    Args:
        spec: of a model, as `seqmodels.model.model_spec` makes it.
        length: positions of a sequence.
        batch: sequences of a batch.
        precision: "bf16-mixed" (autocast) or "32-true".
        optimizer_bytes_per_parameter: of its state; 8 is AdamW in fp32.
        gpus: name -> memory in bytes of the GPUs to plan training for (a layer may keep more where there is more).

    Raises:
        ValueError: length or batch below 1, an unknown precision, no GPU, or a spec that cannot be built.
    """
    require_positive(length=length, batch=batch)
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} must be one of {', '.join(PRECISIONS)}")
    if not gpus:
        raise ValueError("gpus is empty: name at least one, with its memory in bytes")
    tracer = _Tracer(spec, batch, precision)
    largest = max(gpus.values())
    flops_by_part = {part: count / (batch * length) for part, count in tracer.flops(length, largest).items()}
    reading = tracer.reading(length, largest)
    start = tracer.reading(1, largest)
    training = tuple(
        tracer.training_memory(name, gpus[name], length, optimizer_bytes_per_parameter) for name in gpus
    )
    parameters_by_part = tracer.parameters_by_part()
    causal = tracer.model.backbone.is_causal
    return Description(
        length=length,
        batch=batch,
        precision=precision,
        parameters=sum(parameters_by_part.values()),
        parameters_by_part=parameters_by_part,
        flops_per_token=sum(flops_by_part.values()),
        flops_by_part=flops_by_part,
        state_bytes=reading["state"] // batch if causal else None,
        state_bytes_at_start=start["state"] // batch if causal else None,
        training=training,
        reading_bytes=reading["peak"],
    )


def optimizer_bytes_per_parameter(optimizer: Callable[..., torch.optim.Optimizer]) -> float:
    """State of an optimizer, found by taking a step with it.

    Args:
        optimizer: makes it from parameters, as configurations give it.
    """
    parameter = nn.Parameter(torch.zeros(64, 64))
    parameter.grad = torch.zeros(64, 64)
    made = optimizer([parameter])
    made.step()
    states = (value for value in made.state[parameter].values() if isinstance(value, Tensor) and value.dim())
    return sum(value.numel() * value.element_size() for value in states) / parameter.numel()


def parts_of(model: SequenceModel) -> dict[nn.Module, str]:
    """The outermost modules that have a name of their own in a description."""
    parts: dict[nn.Module, str] = {}

    def walk(module: nn.Module, name: str) -> None:
        if isinstance(module, SequenceLayer):
            parts[module] = type(module).__name__
        elif module is model.head:
            parts[module] = "head"
        elif name == "embedding":
            parts[module] = "embedding"
        elif "norm" in name:
            parts[module] = "norms"
        elif "pooling" in name and isinstance(module, nn.ModuleList):
            parts.update(dict.fromkeys(module, "pooling"))
        else:
            for child_name, child in module.named_children():
                walk(child, child_name)

    walk(model, "")
    return parts


class _Tracer:
    """A model of fake tensors, and what running it takes."""

    def __init__(self, spec: Mapping[str, Any], batch: int, precision: str):
        self.fake, self.batch = FakeTensorMode(), batch
        self.bf16 = precision == "bf16-mixed"
        with self.fake:
            self.model: SequenceModel = build(spec)
        self.sequential = any(isinstance(module, nn.RNNBase) for module in self.model.modules())
        self.step: dict[str, float] | None = None
        self.same_on_every_gpu = False
        self.weights = sum(p.numel() * p.element_size() for p in self.model.parameters())

    def parameters_by_part(self) -> dict[str, int]:
        """Every parameter once, in the part where it is first met."""
        owner = {
            id(parameter): part for module, part in parts_of(self.model).items() for parameter in module.parameters()
        }
        tied = self.model.backbone.embedding
        owner |= {id(parameter): "embedding" for parameter in tied.parameters()}
        counts: dict[str, int] = defaultdict(int)
        for parameter in self.model.parameters():
            counts[owner.get(id(parameter), "other")] += parameter.numel()
        return dict(counts)

    def flops(self, length: int, gpu_bytes: int) -> dict[str, float]:
        """Operations of a forward pass over the batch, by part."""

        def count(length: int) -> dict[str, float]:
            with self._running(gpu_bytes), torch.no_grad(), FlopCount(parts_of(self.model)) as flops:
                self.model(self._ids(length))
            return {part: float(number) for part, number in flops.by_part.items()}

        return self._at(length, count)

    def reading(self, length: int, gpu_bytes: int) -> dict[str, int]:
        """Peak of reading without gradients, in the pieces that generation reads, and the state after it."""

        def run(length: int) -> dict[str, float]:
            with self._running(gpu_bytes), torch.no_grad(), LiveMemory() as memory:
                memory.follow(*self.model.parameters(), *self.model.buffers())
                state = self._read(length)
            return {"peak": memory.peak, "state": state_bytes(state)}

        if length <= PREFILL_CHUNK or not self.model.backbone.is_causal:
            found = self._at(length, run)
        else:
            half, first = (self._at(positions, run) for positions in (PREFILL_CHUNK // 2, PREFILL_CHUNK))
            growth = (first["state"] - half["state"]) / (PREFILL_CHUNK // 2)
            if growth:  # a cache: while the last piece is read, there are the one before it and the one behind it
                final = first["state"] + growth * (length - PREFILL_CHUNK)
                before = final - growth * ((length - 1) % PREFILL_CHUNK + 1)
                found = {"peak": first["peak"] + before + final - first["state"], "state": final}
            else:  # every further piece is like the second
                found = self._at(2 * PREFILL_CHUNK, run)
        return {name: round(value) for name, value in found.items()}

    def _read(self, length: int) -> State:
        if not self.model.backbone.is_causal:
            self.model(self._ids(length))
            return None
        state = None
        for first in range(0, length, PREFILL_CHUNK):
            hidden_BLD, state = self.model.backbone(self._ids(min(PREFILL_CHUNK, length - first)), state)
            self.model.head(hidden_BLD[:, -1:])
        return state

    def training_memory(self, gpu: str, gpu_bytes: int, length: int, per_parameter: float) -> TrainingMemory:
        """One step: forward, loss, backward; then the optimizer, whose state is there all the time."""

        def step(length: int) -> dict[str, float]:
            with self._running(gpu_bytes) as planned, LiveMemory() as memory:
                memory.follow(*self.model.parameters(), *self.model.buffers())
                fixed = memory.live
                loss = self._loss(length)
                kept = memory.live - fixed
                loss.backward()
            self.model.zero_grad(set_to_none=True)
            self.same_on_every_gpu = not planned.asked
            return {"kept": kept, "peak": memory.peak}

        if self.step is None or not self.same_on_every_gpu:
            self.step = self._at(length, step)
        found = self.step
        states = round(per_parameter * sum(p.numel() for p in self.model.parameters() if p.requires_grad))
        fixed = 2 * self.weights + states
        peak = max(round(found["peak"]) + states, fixed)
        moving = max(peak - fixed, 1)
        return TrainingMemory(
            gpu=gpu,
            gpu_bytes=gpu_bytes,
            weights_bytes=self.weights,
            gradients_bytes=self.weights,
            optimizer_bytes=states,
            activations_bytes=round(found["kept"]),
            peak_bytes=peak,
            longest=max(0, int(length * (gpu_bytes - OVERHEAD_BYTES - fixed) / moving)),
        )

    def _loss(self, length: int) -> Tensor:
        """As a training step makes it; the autocast ends before backward."""
        ids_BL, labels_B = self._ids(length), torch.zeros(self.batch, dtype=torch.int64)
        lengths_B, names = torch.full((self.batch,), length), ("",) * self.batch
        batch = Batch(ids_BL, lengths_B, names, target_ids_BL=torch.zeros_like(ids_BL), labels_B=labels_B)
        logits, _ = self.model(ids_BL)
        return self.model.head.loss(logits, batch).mean_loss()

    def _at(self, length: int, run: Callable[[int], dict[str, float]]) -> dict[str, float]:
        """`run(length)`; from two short runs where a layer goes position by position and nothing else is not linear."""
        if not self.sequential or length <= SEQUENTIAL_LENGTHS[1]:
            return run(length)
        short, long = SEQUENTIAL_LENGTHS
        low, high = run(short), run(long)
        return {name: low[name] + (high[name] - low[name]) / (long - short) * (length - short) for name in low}

    @contextmanager
    def _running(self, gpu_bytes: int) -> Iterator[Planned]:
        autocast = torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext()
        with self.fake, planned_for_gpu(gpu_bytes) as planned, autocast, warnings.catch_warnings():
            # Layers tell by its address whether a parameter is the one they kept something of; fake ones have none.
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
            yield planned

    def _ids(self, length: int) -> Tensor:
        return torch.zeros(self.batch, length, dtype=torch.int64)
