"""The promises that every op keeps, on the calls that its OpSpec lists: a new op or implementation is tested by itself.

On a machine with a GPU, `pytest -m gpu tests/kernels/test_ops.py` runs the same tests for the GPU implementations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from seqkernels.spec import OpSpec, Sample, specs
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEVICE_OF = {"reference": "cpu", "torch": "cpu", "cpu": "cpu", "cuda": "cuda", "triton": "cuda"}
SPECS = {spec.name: spec for spec in specs()}


def implementations(only: Callable[[OpSpec], bool] = lambda spec: True, *, reference: bool = True) -> list:
    """(op, implementation) pairs as pytest parameters; those of GPUs carry the gpu mark."""
    pairs = [(spec, name) for spec in SPECS.values() for name in spec.registry.modules if only(spec)]
    return [
        pytest.param(spec.name, name, id=f"{spec.name}-{name}", marks=[pytest.mark.gpu] * (DEVICE_OF[name] == "cuda"))
        for spec, name in pairs
        if reference or name != "reference"
    ]


def calls() -> list:
    """(op, implementation, sample, dtype) as pytest parameters: the whole grid, but for the reference itself."""
    out = []
    for spec in SPECS.values():
        names = [name for name in spec.registry.modules if name != "reference"]
        ids = [sample.id for sample in spec.samples(CPU, torch.float32)]
        for name in names:
            marks = [pytest.mark.gpu] * (DEVICE_OF[name] == "cuda")
            for dtype in DTYPES:
                for id_ in ids:
                    values = (spec.name, name, id_, dtype)
                    out.append(pytest.param(*values, id="-".join(values), marks=marks))
    return out


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN, and whatever is not deterministic raises."""
    torch.use_deterministic_algorithms(True)
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before
    torch.use_deterministic_algorithms(False)


def get_sample(op: str, id_: str, dtype: torch.dtype, device: torch.device = CPU) -> Sample:
    return next(sample for sample in SPECS[op].samples(device, dtype) if sample.id == id_)


def runnable(op: str, implementation: str, device: torch.device) -> list[Sample]:
    """The fp32 samples that an implementation can run."""
    registry, samples = SPECS[op].registry, SPECS[op].samples(device, torch.float32)
    return [s for s in samples if registry.unavailable(implementation, *SPECS[op].probe_tensors(s)) is None]


def wide(tensor: Tensor) -> Tensor:
    """The same numbers in double precision."""
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def upstream(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Fixed random gradients for the outputs, in their dtypes."""
    generator = torch.Generator().manual_seed(1)
    draws = [torch.randn(out.shape, dtype=torch.float64, generator=generator) for out in outputs]
    return [draw.to(out.device, out.dtype) for draw, out in zip(draws, outputs)]


def has_gradients(op: str, sample: Sample, implementation: str) -> bool:
    """Whether an implementation that runs on this sample runs where gradients are wanted, too."""
    spec = SPECS[op]
    reason = spec.registry.unavailable(implementation, *spec.probe_tensors(sample), needs_grad=True)
    return reason is None or "gradient" not in reason


def evaluate(
    op: str, sample: Sample, implementation: str, above: list[Tensor] | None = None
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Outputs and the gradients of everything, by name; also the gradients that were put in from above.

    Outputs alone, called without gradients, where the implementation says that it has none.
    """
    if not has_gradients(op, sample, implementation):
        with torch.no_grad():
            outputs = SPECS[op].op(**sample.tensors, **sample.options, implementation=implementation)
        return {f"output{i}": out for i, out in enumerate(outputs if isinstance(outputs, tuple) else (outputs,))}, []
    leaves = {name: tensor.detach() for name, tensor in sample.tensors.items()}
    for name in sample.differentiable():
        leaves[name].requires_grad_()
    result = SPECS[op].op(**leaves, **sample.options, implementation=implementation)
    outputs = result if isinstance(result, tuple) else (result,)
    above = upstream(outputs) if above is None else above
    grads = torch.autograd.grad(outputs, [leaves[n] for n in sample.differentiable()], above, allow_unused=True)
    named = {f"output{i}": out.detach() for i, out in enumerate(outputs)}
    for name, grad in zip(sample.differentiable(), grads):
        assert grad is not None, f"{op} gives no gradient to {name}"
        assert grad.dtype == leaves[name].dtype
        named[f"gradient of {name}"] = grad
    return named, above


@functools.lru_cache(maxsize=512)
def truth_and_baseline(op: str, id_: str, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What float64 gives on the same numbers, and what plain PyTorch gives in the dtype."""
    sample = get_sample(op, id_, dtype)
    baseline, above = evaluate(op, sample, "reference")
    exact = Sample(id_, {name: wide(tensor) for name, tensor in sample.tensors.items()}, sample.options)
    truth, _ = evaluate(op, exact, "reference", [wide(grad) for grad in above])
    return truth, baseline


def errors(got: Tensor, truth: Tensor) -> tuple[float, float]:
    """Largest and root-mean-square difference, relative to the largest and root-mean-square true value."""
    difference = (wide(got).cpu() - truth).abs()
    size = truth.abs()
    tiny = 1e-30
    largest = difference.max() / (size.max() + tiny)
    return largest.item(), (difference.square().mean().sqrt() / (size.square().mean().sqrt() + tiny)).item()


@pytest.mark.parametrize(
    ("op", "id_"), [(s.name, sample.id) for s in SPECS.values() for sample in s.gradcheck_samples()]
)
def test_reference_gradients_match_finite_differences(op: str, id_: str) -> None:
    spec = SPECS[op]
    sample = next(s for s in spec.gradcheck_samples() if s.id == id_)
    names = sample.differentiable()

    def call(*leaves: Tensor) -> Tensor | tuple[Tensor, ...]:
        tensors = {**sample.tensors, **dict(zip(names, leaves))}
        return spec.op(**tensors, **sample.options, implementation="reference")

    leaves = [sample.tensors[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(call, leaves)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("op", "implementation", "id_", "dtype"), calls())
def test_added_error_is_at_most_twice_that_of_plain_pytorch(op: str, implementation: str, id_: str, dtype: str) -> None:
    sample = get_sample(op, id_, DTYPES[dtype], torch.device(DEVICE_OF[implementation]))
    reason = SPECS[op].registry.unavailable(implementation, *SPECS[op].probe_tensors(sample))
    if reason is not None:
        pytest.skip(reason)
    truth, baseline = truth_and_baseline(op, id_, DTYPES[dtype])
    got, _ = evaluate(op, sample, implementation)
    grads = has_gradients(op, sample, implementation)
    assert got.keys() == {name for name in truth if grads or name.startswith("output")}
    for name, value in got.items():
        assert value.shape == truth[name].shape, name
        assert value.dtype == baseline[name].dtype, name
        # Where plain PyTorch happens to be exact, as it may be in each of a handful of values.
        floor = (4 if value.numel() < 8 else 2) * torch.finfo(value.dtype).eps
        floor = max(floor, SPECS[op].slack.get(DTYPES[dtype], 0.0))
        both = zip(("largest", "rms"), errors(value, truth[name]), errors(baseline[name], truth[name]))
        for kind, added, allowed in both:
            assert added <= 2 * allowed + floor, f"{name}: {kind} error {added:.2e}, plain PyTorch makes {allowed:.2e}"


@pytest.mark.parametrize(("op", "implementation"), implementations(reference=False))
def test_float64_is_computed_in_float64(op: str, implementation: str) -> None:
    device = torch.device(DEVICE_OF[implementation])
    for id_ in [sample.id for sample in SPECS[op].samples(CPU, torch.float64)][:6]:
        sample = get_sample(op, id_, torch.float64, device)
        reason = SPECS[op].registry.unavailable(implementation, *SPECS[op].probe_tensors(sample))
        if reason is not None:
            pytest.skip(reason)
        truth, _ = evaluate(op, get_sample(op, id_, torch.float64), "reference")
        got, _ = evaluate(op, sample, implementation)
        for name, value in got.items():
            assert errors(value, truth[name])[0] < 1e-10, f"{id_}: {name}"


@pytest.mark.parametrize(("op", "implementation"), implementations(reference=False))
def test_runs_repeat_bit_for_bit(op: str, implementation: str) -> None:
    device = torch.device(DEVICE_OF[implementation])
    for sample in runnable(op, implementation, device):
        first, _ = evaluate(op, sample, implementation)
        for _ in range(2):
            again, _ = evaluate(op, sample, implementation)
            assert all(torch.equal(first[name], again[name]) for name in first), sample.id


def causal(spec: OpSpec) -> bool:
    return spec.causal


def long_sample(spec: OpSpec, device: torch.device, *, batch_of_one: bool = False) -> Sample:
    """The first fp32 sample with a state, 63 or more steps and no packing, per_position tensors at least 3-d."""
    for sample in spec.samples(device, torch.float32):
        x = next(iter(sample.tensors.values()))
        fits = x.shape[1] >= 63 and (x.shape[0] == 1 or not batch_of_one)
        if fits and spec.state_name in sample.tensors and "cu_seqlens" not in sample.tensors:
            return sample
    raise AssertionError(f"{spec.name} lists no such sample")


def assert_close(got: Tensor, expected: Tensor, name: str) -> None:
    """Equal up to fp32 rounding of a sum of terms as large as the largest value."""
    largest = expected.abs().max().item()
    assert (got - expected).abs().max().item() <= 2e-5 * largest + 1e-7, name


@pytest.mark.parametrize(("op", "implementation"), implementations(causal))
@pytest.mark.parametrize("cuts", [(1,), (31,), (1, 2, 33, 62)], ids=str)
def test_any_cut_equals_the_whole(op: str, implementation: str, cuts: tuple[int, ...]) -> None:
    """Outputs, final state and every gradient, the state's included, when a sequence is run in pieces."""
    spec = SPECS[op]
    sample = long_sample(spec, torch.device(DEVICE_OF[implementation]))
    whole, above = evaluate(op, sample, implementation)

    def in_pieces(*, implementation: str, **tensors: Tensor) -> tuple[Tensor, Tensor]:
        length = next(iter(tensors.values())).shape[1]
        state, ys = tensors[spec.state_name], []
        for start, end in zip((0, *cuts), (*cuts, length)):
            piece = {n: t[:, start:end] if n in spec.per_position else t for n, t in tensors.items()}
            piece[spec.state_name] = state
            y, state = spec.op(**piece, **sample.options, implementation=implementation)
            ys.append(y)
        return torch.cat(ys, dim=1), state

    leaves = {n: t.detach().requires_grad_(n in sample.differentiable()) for n, t in sample.tensors.items()}
    outputs = in_pieces(implementation=implementation, **leaves)
    grads = torch.autograd.grad(outputs, [leaves[n] for n in sample.differentiable()], above)
    for i, out in enumerate(outputs):
        assert_close(out.detach(), whole[f"output{i}"], f"output{i}")
    for name, grad in zip(sample.differentiable(), grads):
        assert_close(grad, whole[f"gradient of {name}"], name)


@pytest.mark.parametrize(("op", "implementation"), implementations(causal))
def test_packed_sequences_equal_separate_ones(op: str, implementation: str) -> None:
    spec = SPECS[op]
    device = torch.device(DEVICE_OF[implementation])
    sample = next(s for s in spec.samples(device, torch.float32) if "cu_seqlens" in s.tensors and s.id.count("state"))
    packed, above = evaluate(op, sample, implementation)
    bounds = sample.tensors["cu_seqlens"].tolist()
    expected: dict[str, list[Tensor]] = {name: [] for name in packed}
    for i, (start, end) in enumerate(pairwise(bounds)):
        alone = {n: t[:, start:end] if n in spec.per_position else t for n, t in sample.tensors.items()}
        del alone["cu_seqlens"]
        alone[spec.state_name] = alone[spec.state_name][i : i + 1]
        pieces = [above[0][:, start:end], above[1][i : i + 1]]
        got, _ = evaluate(op, Sample("alone", alone, sample.options), implementation, pieces)
        for name, value in got.items():
            expected[name].append(value)
    per_position = {"output0", *(f"gradient of {name}" for name in spec.per_position)}
    per_sequence = {"output1", f"gradient of {spec.state_name}"}
    for name, values in expected.items():
        if name in per_position:
            whole = torch.cat(values, dim=1)
        else:
            whole = torch.cat(values) if name in per_sequence else torch.stack(values).sum(0)
        assert_close(packed[name], whole, name)


@pytest.mark.parametrize(("op", "implementation"), implementations(causal))
def test_the_future_never_changes_the_past(op: str, implementation: str) -> None:
    spec = SPECS[op]
    sample = long_sample(spec, torch.device(DEVICE_OF[implementation]))
    before, _ = spec.op(**sample.tensors, **sample.options, implementation=implementation)
    for cut in (1, 17, 62):
        tensors = {n: t.clone() for n, t in sample.tensors.items()}
        for name in spec.per_position:
            if name in tensors:
                tensors[name][:, cut:] = -3 * tensors[name][:, cut:] + 1
        after, _ = spec.op(**tensors, **sample.options, implementation=implementation)
        assert torch.equal(before[:, :cut], after[:, :cut])
        assert not torch.equal(before[:, cut:], after[:, cut:])


@pytest.mark.parametrize(("op", "implementation"), implementations(causal))
def test_a_batch_entry_does_not_depend_on_the_others(op: str, implementation: str) -> None:
    spec = SPECS[op]
    sample = long_sample(spec, torch.device(DEVICE_OF[implementation]))
    assert next(iter(sample.tensors.values())).shape[0] > 1
    together, _ = spec.op(**sample.tensors, **sample.options, implementation=implementation)
    batched = (*spec.per_position, spec.state_name)
    for i in range(len(together)):
        one = {n: t[i : i + 1] if n in batched else t for n, t in sample.tensors.items()}
        alone, _ = spec.op(**one, **sample.options, implementation=implementation)
        assert_close(alone[0], together[i], f"batch entry {i}")


class Recorder(TorchDispatchMode):
    """Keeps the calls of our registered ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "seqkernels":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("op", "implementation"), implementations(reference=False))
def test_registered_ops_pass_opcheck(op: str, implementation: str) -> None:
    """Schema, fake tensors, autograd registration and tracing, of the forward and (seen on CPUs) the backward op."""
    sample = runnable(op, implementation, torch.device(DEVICE_OF[implementation]))[2]
    with Recorder() as recorder:
        evaluate(op, sample, implementation)
    assert recorder.calls, f"{op}-{implementation} runs no registered op"
    names = set()
    for func, args, kwargs in recorder.calls:
        plain = "backward" in func.name() or func.name() in names or not has_gradients(op, sample, implementation)
        names.add(func.name())
        args = tuple(
            a.detach().clone().requires_grad_(not plain and (a.is_floating_point() or a.is_complex()))
            if isinstance(a, Tensor)
            else a
            for a in args
        )
        torch.library.opcheck(func, args, kwargs)


@pytest.mark.parametrize(("op", "implementation"), implementations(reference=False))
def test_compiles_to_one_node_without_graph_breaks(op: str, implementation: str) -> None:
    sample = list(SPECS[op].samples(torch.device(DEVICE_OF[implementation]), torch.float32))[2]
    seen: list[str] = []

    def count(graph: torch.fx.GraphModule, example_inputs: list) -> Callable:
        seen.extend(str(node.target) for node in graph.graph.nodes if "seqkernels" in str(node.target))
        return graph.forward

    def call(**tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        return SPECS[op].op(**tensors, **sample.options, implementation="auto")

    torch.compiler.reset()
    leaves = {n: t.detach().requires_grad_(n in sample.differentiable()) for n, t in sample.tensors.items()}
    with torch.set_grad_enabled(has_gradients(op, sample, implementation)):
        got = torch.compile(call, fullgraph=True, backend=count)(**leaves)
        expected = call(**leaves)
    first, other = (r[0] if isinstance(r, tuple) else r for r in (got, expected))
    assert torch.equal(first, other)
    assert len(seen) == 1, seen


@pytest.mark.parametrize(
    ("op", "match"), [(spec.name, error.match) for spec in SPECS.values() for error in spec.error_inputs()]
)
def test_wrong_inputs_are_refused_in_words(op: str, match: str) -> None:
    sample = next(error.sample for error in SPECS[op].error_inputs() if error.match == match)
    with pytest.raises(ValueError, match=op) as caught:
        SPECS[op].op(**sample.tensors, **sample.options)
    assert match in str(caught.value)
