"""S4D against a float64 recurrence written from the paper's formulas, its two modes, and its published layout."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from seqkernels.long_conv import sizes
from torch.utils._python_dispatch import TorchDispatchMode

from seqmodels.layers.s4d import S4D, S4DKernel, S4DState
from seqmodels.layers.state import detach_state, select_state
from seqmodels.testing import assert_same, check_any_cut, check_packing, parameter_names

KINDS = [(init, method) for init in ("lin", "inv", "real") for method in ("zoh", "bilinear")]
KIND_IDS = ["-".join(kind) for kind in KINDS]


def kernel_by_hand(kernel: S4DKernel, u_LE: np.ndarray, state_EN: np.ndarray | None = None):
    """One sequence, one position at a time, in complex128; formulas written out, nothing shared with the layer."""
    p = {name: value.detach().double().numpy() for name, value in kernel.named_parameters()}
    a = -np.exp(p["log_A_real"]) + 1j * p.get("A_imag", 0)
    dt = kernel.rate * np.exp(p["log_dt"])[:, None]
    c = p["C"][..., 0] + 1j * p["C"][..., 1] if "A_imag" in p else p["C"]
    if kernel.discretisation == "zoh":
        abar, bbar = np.exp(dt * a), (np.exp(dt * a) - 1) / (dt * a) * dt
    else:
        abar, bbar = (1 + dt * a / 2) / (1 - dt * a / 2), dt / (1 - dt * a / 2)
    h, y = np.zeros(a.shape, complex) if state_EN is None else state_EN, []
    for u_E in u_LE:
        h = abar * h + bbar * u_E[:, None]
        y.append((2 if "A_imag" in p else 1) * (c * h).sum(1).real)
    return np.stack(y), h


def perturbed(kind: tuple[str, str], width: int = 3, d_state: int = 8, **options) -> S4DKernel:
    torch.manual_seed(0)
    kernel = S4DKernel(width, init=kind[0], discretisation=kind[1], d_state=d_state, dt_min=0.05, dt_max=0.9, **options)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return kernel


def as_complex(state: S4DState | None, is_complex: bool) -> np.ndarray:
    assert state is not None
    return (torch.view_as_complex(state.ssm) if is_complex else state.ssm).detach().numpy()


def linear_of(layer: S4D) -> torch.nn.Linear:
    linear = layer.output_linear[0]
    assert isinstance(linear, torch.nn.Linear)
    return linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS, ids=KIND_IDS)
def test_both_modes_are_the_recurrence(kind, dtype):
    kernel = perturbed(kind, rate=1.5)
    tolerance = 1e-6 if dtype is torch.float32 else 1e-13
    if kind == ("real", "bilinear"):  # bilinear real modes may alternate in sign
        z = -1.5 * kernel.log_dt.exp()[:, None] * kernel.log_A_real.exp()
        assert (z < -2).any(), "this test should cover a negative abar"
    u_BLE = torch.randn(2, 45, 3, dtype=dtype)
    first, state = kernel(u_BLE[:, :30])
    second, state = kernel(u_BLE[:, 30:44], state)
    third, state = kernel(u_BLE[:, 44:], state)  # one position: the recurrent mode
    assert state.ssm.dtype is dtype
    y_BLE = torch.cat([first, second, third], dim=1)
    for row in range(2):
        expected, final = kernel_by_hand(kernel, u_BLE[row].double().numpy())
        np.testing.assert_allclose(y_BLE[row].detach().numpy(), expected, rtol=0, atol=tolerance * abs(expected).max())
        np.testing.assert_allclose(
            as_complex(state, kernel.is_complex)[row], final, rtol=0, atol=tolerance * abs(final).max()
        )


@torch.no_grad()
def test_modes_agree_over_thousands_of_positions():
    torch.manual_seed(0)
    layer, x_BLD = S4D(6), torch.randn(2, 3001, 6)
    whole, final = layer(x_BLD)
    state, steps = None, []
    for t in range(3001):
        y_B1D, state = layer(x_BLD[:, t : t + 1], state)
        steps.append(y_B1D)
    assert_same(torch.cat(steps, dim=1), whole, "steps", tolerance=1e-4)
    assert state is not None
    assert_same(state.ssm, final.ssm, "state after steps", tolerance=1e-4)


@torch.no_grad()
def test_slow_modes_are_exact_far_away():
    """An impulse 200,000 positions ago, modes that hardly decay: phases of 10^5 radians and more."""
    torch.manual_seed(0)
    kernel, L = S4DKernel(2, d_state=16), 200_001
    kernel.log_A_real.fill_(math.log(2e-3))
    u_BLE = torch.zeros(1, L, 2)
    u_BLE[0, 0] = 1
    y_BLE, state = kernel(u_BLE)
    a = (-kernel.log_A_real.double().exp()).numpy().astype(np.clongdouble) + 1j * kernel.A_imag.double().numpy()
    dt = np.exp(kernel.log_dt.double().numpy().astype(np.longdouble))[:, None]
    c = torch.view_as_complex(kernel.C).numpy()
    assert (dt * abs(a.imag) * L).max() > 1e5
    for t in (1000, 54_321, L - 1):
        h = np.exp(t * dt * a) * (np.exp(dt * a) - 1) / a
        expected = (2 * (c * h).sum(1).real).astype(float)
        np.testing.assert_allclose(y_BLE[0, t].numpy(), expected, rtol=0, atol=1e-6 * y_BLE.abs().max())
    np.testing.assert_allclose(torch.view_as_complex(state.ssm)[0].numpy(), h.astype(complex), atol=1e-6 * abs(h).max())


@pytest.mark.parametrize("kind", KINDS, ids=KIND_IDS)
def test_gradients(kind):
    kernel = perturbed(kind, width=2, d_state=4).double()
    parameters = {name: p.detach().requires_grad_() for name, p in kernel.named_parameters()}
    state_shape = (2, 2, 2, 2) if kernel.is_complex else (2, 2, 4)
    u_BLE = torch.randn(2, 11, 2, dtype=torch.float64, requires_grad=True)
    state = torch.randn(state_shape, dtype=torch.float64, requires_grad=True)

    def run(u_BLE, state, *values, cu_seqlens=None):
        named = dict(zip(parameters, values, strict=True))
        y_BLE, final = torch.func.functional_call(kernel, named, (u_BLE, S4DState(state)), {"cu_seqlens": cu_seqlens})
        return y_BLE, final.ssm

    def packed(u_BLE, state, *values):
        cu_seqlens = torch.tensor([0, 9, 22])
        return run(u_BLE.reshape(1, 22, 2), state, *values, cu_seqlens=cu_seqlens)

    assert torch.autograd.gradcheck(run, (u_BLE, state, *parameters.values()))
    assert torch.autograd.gradcheck(lambda u, *rest: run(u[:, :1], *rest), (u_BLE, state, *parameters.values()))
    if kind == KINDS[0]:
        assert torch.autograd.gradcheck(packed, (u_BLE, state, *parameters.values()))


@pytest.mark.parametrize("kind", KINDS, ids=KIND_IDS)
@torch.no_grad()
def test_laws_hold_for_every_kind(kind):
    torch.manual_seed(0)
    layer = S4D(8, init=kind[0], discretisation=kind[1], d_state=6, rate=0.7)
    x_BLD = torch.randn(2, 40, 8)
    check_any_cut(layer, x_BLD)
    check_packing(layer, x_BLD)


def test_the_layer_around_the_kernel():
    torch.manual_seed(0)
    layer, x_BLD = S4D(5, d_state=4), torch.randn(1, 9, 5)
    expected, _ = kernel_by_hand(layer.kernel, x_BLD[0].double().numpy())
    y_LD = F.gelu(torch.from_numpy(expected).float() + layer.D * x_BLD[0])
    linear = linear_of(layer)
    value_LD, gate_LD = (y_LD @ linear.weight.T + linear.bias).chunk(2, dim=-1)
    torch.testing.assert_close(layer(x_BLD)[0][0], value_LD * torch.sigmoid(gate_LD), rtol=1e-5, atol=1e-6)


def test_rate_two_reads_every_second_sample():
    """An input that is held for two samples: half the sampling rate, twice the step, exactly the same outputs (ZOH)."""
    kernel, u_BLE = perturbed(("lin", "zoh")), torch.randn(1, 20, 3)
    at_full_rate, full_state = kernel(u_BLE.repeat_interleave(2, dim=1))
    kernel.rate = 2.0
    at_half_rate, half_state = kernel(u_BLE)
    torch.testing.assert_close(at_half_rate, at_full_rate[:, 1::2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(half_state.ssm, full_state.ssm, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_published_names_shapes_and_initialisation():
    torch.manual_seed(0)
    layer = S4D(512, d_state=32)
    assert parameter_names(layer) == {
        "kernel.log_dt": (512,),
        "kernel.log_A_real": (512, 16),
        "kernel.A_imag": (512, 16),
        "kernel.C": (512, 16, 2),
        "D": (512,),
        "output_linear.0.weight": (1024, 512),
        "output_linear.0.bias": (1024,),
    }
    low, high = math.log(0.001), math.log(0.1)
    assert low <= layer.kernel.log_dt.min() < layer.kernel.log_dt.max() <= high
    assert layer.kernel.log_dt.std() == pytest.approx((high - low) / math.sqrt(12), rel=0.06)
    torch.testing.assert_close(layer.kernel.log_A_real.exp(), torch.full((512, 16), 0.5))
    torch.testing.assert_close(layer.kernel.A_imag, (math.pi * torch.arange(16.0)).expand(512, 16))
    assert torch.view_as_complex(layer.kernel.C).abs().square().mean() == pytest.approx(1, rel=0.05)
    assert layer.D.std() == pytest.approx(1, rel=0.1)
    marked = {name for name, p in layer.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert marked == {"kernel.log_dt", "kernel.log_A_real", "kernel.A_imag"}


def test_other_initialisations():
    inv, real = S4DKernel(2, init="inv", d_state=4), S4DKernel(2, init="real", d_state=5)
    # N/pi (N/(2n+1) - 1) with N = 4: 12/pi for n = 0, 4/(3 pi) for n = 1
    torch.testing.assert_close(inv.A_imag[0], torch.tensor([12 / math.pi, 4 / (3 * math.pi)]))
    torch.testing.assert_close(inv.log_A_real.exp(), torch.full((2, 2), 0.5))
    torch.testing.assert_close(real.log_A_real.exp()[1], torch.tensor([1.0, 2, 3, 4, 5]))
    assert not hasattr(real, "A_imag")
    assert real.C.shape == (2, 5)


def test_loads_the_authors_convolution_weight():
    layer, other = S4D(4), S4D(4)
    weights = layer.state_dict()
    weights["output_linear.0.weight"] = weights["output_linear.0.weight"][..., None]
    torch.nn.ModuleDict({"mixer": other}).load_state_dict({f"mixer.{name}": value for name, value in weights.items()})
    assert torch.equal(linear_of(other).weight, linear_of(layer).weight)


def test_autocast_leaves_the_convolution_in_fp32():
    kernel, u_BLE = perturbed(("lin", "zoh")), torch.randn(2, 50, 3)
    state = kernel(u_BLE)[1]
    plain, plain_state = kernel(u_BLE, state)
    with torch.autocast("cpu", torch.bfloat16):
        under, under_state = kernel(u_BLE, state)
    assert torch.equal(plain, under)
    assert torch.equal(plain_state.ssm, under_state.ssm)
    assert kernel(u_BLE.bfloat16())[0].dtype is torch.float32


def test_a_model_cast_to_bf16_by_hand_keeps_an_fp32_state():
    layer = S4D(8).bfloat16()
    y_BLD, state = layer(torch.randn(2, 9, 8, dtype=torch.bfloat16))
    y_B1D, state = layer(y_BLD[:, -1:], state)
    assert y_B1D.dtype is torch.bfloat16
    assert state.ssm.dtype is torch.float32


def test_blocks_of_channels_change_nothing(monkeypatch):
    results = []
    for elements in (2**26, 1):
        monkeypatch.setattr(sizes, "BLOCK_ELEMENTS", elements)
        kernel, u_BLE = perturbed(("lin", "zoh")), torch.linspace(-1, 1, 240).reshape(2, 40, 3).requires_grad_()
        y_BLE, state = kernel(u_BLE, kernel(u_BLE)[1])
        grads = torch.autograd.grad(y_BLE.square().sum() + state.ssm.sum(), [u_BLE, *kernel.parameters()])
        results.append((y_BLE, state.ssm, *grads))
    for one, many in zip(*results, strict=True):
        torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-6)


def test_the_vandermonde_matrix_is_never_made(monkeypatch):
    monkeypatch.setattr(sizes, "BLOCK_ELEMENTS", 2**18)

    class Largest(TorchDispatchMode):
        bytes = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
            return out

    L, kernel = 2**16, S4DKernel(4, d_state=64)
    u_BLE = torch.randn(1, L, 4, requires_grad=True)
    with Largest() as seen:
        kernel(u_BLE)[0].square().sum().backward()
    assert seen.bytes <= 2**18 * 8, "a block's padded input, at most as complex64 or float64"
    assert seen.bytes < 4 * 32 * L * 8 / 30


@torch.no_grad()
def test_steps_follow_parameters_that_are_changed_or_replaced():
    layer, x_B1D = S4D(4), torch.randn(2, 1, 4)
    _, state = layer(torch.randn(2, 5, 4))
    seen = []

    def check() -> None:
        stepped, _ = layer(x_B1D, state)
        with torch.enable_grad():
            fresh, _ = layer(x_B1D, state)
        assert torch.equal(stepped, fresh)
        assert all(not torch.equal(stepped, before) for before in seen)
        seen.append(stepped)

    check()
    layer.kernel.log_dt.add_(0.5)
    check()
    layer.kernel.A_imag = torch.nn.Parameter(layer.kernel.A_imag + 1)
    check()
    layer.kernel.rate = 3.0
    check()
    layer.load_state_dict({name: value * 1.1 for name, value in layer.state_dict().items()})
    check()


@pytest.mark.parametrize("cuts", [[1], [7, 8], [2, 3, 64, 100], [50, 51, 52, 53, 99]])
def test_packed_gradients_equal_those_of_separate_sequences(cuts):
    layer = S4D(4, d_state=6)
    x_BLD = torch.randn(1, 120, 4, requires_grad=True)
    bounds = [0, *cuts, 120]
    _, initial = layer(torch.randn(len(bounds) - 1, 5, 4))
    packed, final = layer(x_BLD, initial, cu_seqlens=torch.tensor(bounds))
    alone = [
        layer(x_BLD[:, first:last], select_state(initial, [row])) for row, (first, last) in enumerate(pairwise(bounds))
    ]
    assert_same(packed.detach(), torch.cat([y for y, _ in alone], dim=1).detach(), "packed")
    assert_same(final.ssm.detach(), torch.cat([state.ssm for _, state in alone]).detach(), "packed states")
    leaves, wave = [x_BLD, *layer.parameters()], torch.sin(torch.arange(480.0)).view(1, 120, 4)
    mine = torch.autograd.grad((packed * wave).sum(), leaves, retain_graph=True)
    other = torch.autograd.grad((torch.cat([y for y, _ in alone], dim=1) * wave).sum(), leaves)
    for actual, expected in zip(mine, other, strict=True):
        assert_same(actual, expected, "gradient", tolerance=1e-4)


def test_refuses_bad_offsets_of_packed_sequences():
    with pytest.raises(ValueError, match="cu_seqlens runs from 0 to 9"):
        S4D(4)(torch.randn(1, 10, 4), cu_seqlens=torch.tensor([0, 9]))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 37, 1000, 16000, 2**17, 2**17 + 1, 958_464])
def test_fft_size(length):
    size = sizes.fft_size(2 * length)
    assert 2 * length <= size <= 2.5 * length + 2
    assert size % 2 == 0
    for prime in (2, 3, 5):
        while size % prime == 0:
            size //= prime
    assert size == 1


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's tracer does it
@pytest.mark.usefixtures("unchecked_shapes")
def test_traces_without_graph_breaks():
    torch.manual_seed(0)
    layer, x_BLD = S4D(4, d_state=4), torch.randn(2, 20, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y_BLD, state = compiled(x_BLD)
    expected, expected_state = layer(x_BLD)
    torch.testing.assert_close(y_BLD, expected)
    torch.testing.assert_close(compiled(x_BLD[:, :1], detach_state(state))[0], layer(x_BLD[:, :1], expected_state)[0])
    mine, other = (torch.autograd.grad(y.square().sum(), list(layer.parameters())) for y in (y_BLD, expected))
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_shapes_are_known_on_the_meta_device():
    with torch.device("meta"):
        y_BLD, state = S4D(8)(torch.empty(2, 1000, 8))
    assert (y_BLD.shape, state.ssm.shape) == ((2, 1000, 8), (2, 8, 32, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_state": 0}, "d_state=0"),
        ({"d_state": 5}, "d_state=5: complex modes come in conjugate pairs"),
        ({"init": "legs"}, "init='legs': must be one of lin, inv, real"),
        ({"discretisation": "euler"}, "discretisation='euler': must be one of zoh, bilinear"),
        ({"dt_min": 0.2}, "dt_min=0.2"),
        ({"rate": 0.0}, "rate=0.0"),
        ({"rate": float("inf")}, "rate=inf"),
    ],
)
def test_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        S4D(8, **arguments)


@pytest.mark.gpu
def test_a_million_positions_train_in_four_gib():
    """Input, output and their gradients are 1 GiB; the (64, 32, 2^20) Vandermonde matrix alone would be 16 GiB."""
    kernel = S4DKernel(64).cuda()
    u_BLE = torch.randn(1, 2**20, 64, device="cuda", requires_grad=True)
    torch.cuda.reset_peak_memory_stats()
    y_BLE, state = kernel(u_BLE)
    y_BLE.sum().backward()
    assert torch.cuda.max_memory_allocated() < 4 * 2**30
    with torch.no_grad():
        cut = kernel(u_BLE[:, 2**19 :], kernel(u_BLE[:, : 2**19])[1])
    assert_same(cut[0], y_BLE[:, 2**19 :].detach(), "second half from the carried state", tolerance=1e-5)
    assert_same(cut[1].ssm, state.ssm.detach(), "state", tolerance=1e-5)
