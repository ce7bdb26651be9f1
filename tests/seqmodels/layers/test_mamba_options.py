"""Mamba's complex form and its norms on dt, B and C: against loops in float64, and against transformers' mixers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import domains.audio  # noqa: F401 - transformers imports torchaudio, which this makes importable beside any torch
import seqmodels.layers.mamba
from seqmodels.layers.mamba import Mamba
from seqmodels.testing import check_laws

OPTIONS = [
    {"complex": True},
    {"selection_norm": "weighted"},
    {"selection_norm": "fixed"},
    {"complex": True, "selection_norm": "weighted", "conv_bias": False, "bias": True},
]
IDS = ["complex", "weighted", "fixed", "complex-weighted"]


def build(width: int = 12, **options) -> Mamba:
    torch.manual_seed(0)
    layer = Mamba(width, **{"d_state": 5, **options})
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


def by_hand(layer: Mamba, x_LD: torch.Tensor) -> torch.Tensor:
    """One sequence, one position at a time; float64 and complex128."""
    p = {name: value.detach().double() for name, value in layer.named_parameters()}
    E, R, W = layer.d_inner, layer.dt_rank, layer.conv1d.weight.shape[-1]
    is_complex = "A_imag" in p
    S = layer.d_state * (2 if is_complex else 1)
    a_EN = torch.complex(-p["A_log"].exp(), p["A_imag"]) if is_complex else -p["A_log"].exp()

    def normed(v: torch.Tensor, name: str) -> torch.Tensor:
        if layer.selection_norm == "none":
            return v
        return v / (v.square().mean() + 1e-6).sqrt() * p.get(f"{name}_layernorm.weight", 1)

    h_EN, window_WE, out = torch.zeros_like(a_EN), torch.zeros(W, E).double(), []
    for x_D in x_LD.double():
        x_E, z_E = (p["in_proj.weight"] @ x_D + p.get("in_proj.bias", 0)).split(E)
        window_WE = torch.cat([window_WE[1:], x_E[None]])
        u_E = F.silu((window_WE.T * p["conv1d.weight"][:, 0]).sum(1) + p.get("conv1d.bias", 0))
        dt_R, b_S, c_S = (p["x_proj.weight"] @ u_E).split([R, S, S])
        dt_R, b_S, c_S = normed(dt_R, "dt"), normed(b_S, "b"), normed(c_S, "c")
        if is_complex:
            b_S, c_S = torch.complex(b_S[0::2], b_S[1::2]), torch.complex(c_S[0::2], c_S[1::2])
        dt_E = F.softplus(p["dt_proj.weight"] @ dt_R + p["dt_proj.bias"])
        h_EN = torch.exp(dt_E[:, None] * a_EN) * h_EN + dt_E[:, None] * b_S * u_E[:, None]
        y_E = 2 * (h_EN @ c_S).real if is_complex else h_EN @ c_S
        y_E = y_E + p["D"] * u_E
        out.append(p["out_proj.weight"] @ (y_E * F.silu(z_E)) + p.get("out_proj.bias", 0))
    return torch.stack(out)


@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_is_the_recurrence(options, implementation):
    layer, x_LD = build(implementation=implementation, **options), torch.randn(21, 12)
    expected = by_hand(layer, x_LD)
    y_BLD, state = layer(x_LD[None])
    torch.testing.assert_close(y_BLD[0].double(), expected, rtol=1e-4, atol=1e-5)
    assert state.ssm.dtype is torch.float32
    assert state.ssm.shape == ((1, 24, 5, 2) if layer.complex else (1, 24, 5))
    with torch.no_grad():  # no gradients: the path of decoding
        steps, state = [], None
        for t in range(21):
            y_B1D, state = layer(x_LD[None, t : t + 1], state)
            steps.append(y_B1D[0])
    torch.testing.assert_close(torch.cat(steps).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_laws(options):
    check_laws(build(**options), torch.randn(2, 24, 12))


def test_the_fused_step_is_left_alone_without_options(monkeypatch):
    calls = []
    real = seqmodels.layers.mamba.mamba_step
    monkeypatch.setattr(seqmodels.layers.mamba, "mamba_step", lambda *a, **k: calls.append(1) or real(*a, **k))
    x_B1D = torch.randn(2, 1, 12)
    with torch.no_grad():
        for options in ({}, *OPTIONS):
            layer = build(**options)
            layer(x_B1D, layer(x_B1D)[1])
    assert len(calls) == 1


def test_complex_initialisation():
    layer = Mamba(8, complex=True, d_state=4)
    a_EN = torch.complex(-layer.A_log.exp(), layer.A_imag)
    expected = torch.tensor([-0.5 + 0j, -0.5 + 1j, -0.5 + 2j, -0.5 + 3j])
    torch.testing.assert_close(a_EN, expected.expand(16, 4))
    assert layer.x_proj.weight.shape == (layer.dt_rank + 4 * 4, 16)
    marked = {name for name, p in layer.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert marked == {"A_log", "A_imag", "D"}


def test_norms_have_jambas_names_or_no_parameters():
    kinds = ("none", "weighted", "fixed")
    plain, weighted, fixed = (dict(Mamba(32, selection_norm=kind).named_parameters()) for kind in kinds)
    assert fixed.keys() == plain.keys()
    added = {name: tuple(weighted[name].shape) for name in weighted.keys() - plain.keys()}
    assert added == {"dt_layernorm.weight": (2,), "b_layernorm.weight": (16,), "c_layernorm.weight": (16,)}


@pytest.mark.parametrize("kind", ["jamba", "falcon_mamba"])
@torch.no_grad()
def test_gives_what_transformers_mixer_gives(kind):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "jamba":
        from transformers import JambaConfig
        from transformers.models.jamba.modeling_jamba import JambaMambaMixer

        jamba = JambaConfig(hidden_size=32, mamba_d_state=5, mamba_dt_rank=2, num_hidden_layers=1)
        theirs, norm = JambaMambaMixer(jamba, layer_idx=0), "weighted"
    else:
        from transformers import FalconMambaConfig
        from transformers.models.falcon_mamba.modeling_falcon_mamba import FalconMambaMixer

        falcon = FalconMambaConfig(hidden_size=32, state_size=5, time_step_rank=2, num_hidden_layers=1)
        theirs, norm = FalconMambaMixer(falcon, layer_idx=0, initialize_mixer_weights=False), "fixed"
    ours = build(32, dt_rank=2, selection_norm=norm)
    theirs.load_state_dict(ours.state_dict())
    x_BLD = torch.randn(2, 13, 32)
    torch.testing.assert_close(ours(x_BLD)[0], theirs.eval()(x_BLD), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_keeping_less_for_backward_changes_nothing(options):
    results = []
    for level in ("nothing", "all"):
        layer, x_BLD = build(recompute=level, **options), torch.linspace(-1, 1, 264).view(1, 22, 12).requires_grad_()
        first_BLD, state = layer(x_BLD[:, :10])
        y_BLD = torch.cat([first_BLD, layer(x_BLD[:, 10:], state)[0]], dim=1)
        results.append((y_BLD, *torch.autograd.grad(y_BLD.square().sum(), [x_BLD, *layer.parameters()])))
    for plain, lean in zip(*results, strict=True):
        torch.testing.assert_close(lean, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_bf16_stays_near_fp32(options):
    layer, x_BLD = build(64, **options), torch.randn(2, 100, 64)
    with torch.no_grad():
        exact, _ = layer(x_BLD)
        with torch.autocast("cpu", torch.bfloat16):
            rounded, state = layer(x_BLD)
            stepped, state = layer(x_BLD[:, :1], state)
    assert (rounded.float() - exact).norm() < 0.02 * exact.norm()
    assert stepped.dtype is torch.bfloat16
    assert state.ssm.dtype is torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"selection_norm": "rms"}, "selection_norm='rms': must be one of none, weighted, fixed"),
        ({"complex": True, "recompute": "inputs"}, "recompute='inputs' .* give 'all'"),
        ({"selection_norm": "fixed", "recompute": "inputs"}, "recompute='inputs' .* give 'all'"),
    ],
)
def test_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Mamba(16, **arguments)
