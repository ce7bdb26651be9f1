"""The pooling backbone: what it computes, at which rates it steps, rows at different phases, gradients."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from seqmodels import testing
from seqmodels.backbones.unet import UNet
from seqmodels.heads.next_token import NextTokenHead
from seqmodels.inference.generate import generate
from seqmodels.inference.sampling import Sampling
from seqmodels.layers.base import SequenceLayer
from seqmodels.layers.mamba import Mamba
from seqmodels.layers.state import concat_states, select_state, state_tensors
from seqmodels.model import SequenceModel


class FeedForward(SequenceLayer):
    """A layer without memory."""

    residual_projections = ("out",)

    def __init__(self, d_model: int):
        super().__init__()
        self.inner, self.out = nn.Linear(d_model, 2 * d_model), nn.Linear(2 * d_model, d_model)

    def forward(self, x_BLD, state=None, *, cu_seqlens=None):
        return self.out(torch.nn.functional.gelu(self.inner(x_BLD))), ()


LAYERS = {"m": functools.partial(Mamba, d_state=4), "-": FeedForward}


def unet(**kwargs) -> UNet:
    torch.manual_seed(0)
    settings = {"d_model": 16, "pool": [2, 3], "n_layers": 1, "outer": "m", "centre": "m-", "layers": LAYERS}
    model = UNet(vocab_size=11, **{**settings, **kwargs})
    with torch.no_grad():  # no parameter at a special value, and a stream to which every block adds visibly
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def ids(*shape: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 11, shape)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pool": [4]},
        {"pool": [7, 2]},
        {"pool": [2, 2, 2], "expand": 1},
        {"expand": [2, 1], "outer": "m-", "n_layers": 2},
        {"pool": [64], "centre": "-m"},  # longer than the sequence: the centre never runs
        {"checkpoint_blocks": True},
    ],
    ids=str,
)
def test_laws(settings):
    testing.check_laws(unet(**settings), ids(2, 29))


def plainly(model: UNet, ids_BL: torch.Tensor) -> torch.Tensor:
    """The published forward pass for lengths that are multiples of the pooling: reshape, shift by one, skips."""

    def stage(blocks, x, skips=None):
        inputs = []
        for block in blocks:
            inputs.append(x)
            x = x + block.mixer(block.norm(x))[0]
            if skips is not None:
                x = x + skips.pop()
        return x, inputs

    def tier(level, x):
        if level == len(model.pool):
            return stage(model.centre, x)[0] + x
        B, L, D = x.shape
        p = model.pool[level]
        x, skips = stage(model.down[level], x)
        inner = model.unpooling[level](tier(level + 1, model.pooling[level](x.reshape(B, L // p, p * D))))
        shifted = torch.cat([torch.zeros_like(inner[:, :1]), inner[:, :-1]], dim=1)
        return stage(model.up[level], x + shifted.reshape(B, L, D), skips)[0]

    return model.norm_f(tier(0, model.embedding(ids_BL)))


def test_is_the_published_computation():
    model, ids_BL = unet(n_layers=2, outer="m-"), ids(2, 36)
    with torch.no_grad():
        actual, expected = model(ids_BL)[0], plainly(model, ids_BL)
    testing.assert_same(actual, expected, "hidden states")
    without = unet(n_layers=2, outer="m-")
    with torch.no_grad():
        without.unpooling[1].weight.zero_()
        assert (without(ids_BL)[0] - expected).abs().max() > 1, "the centre does not matter"


def test_widths_and_rates():
    model = unet(pool=[2, 3], expand=[3, 2])
    assert model.widths == (16, 48, 96)
    assert model.steps_per_cycle == 6
    assert [linear.weight.shape for linear in model.pooling] == [(48, 32), (96, 144)]
    assert [linear.weight.shape for linear in model.unpooling] == [(32, 48), (144, 96)]
    assert len(model.mixers) == 2 + 2 + 2


def test_a_pooled_tier_steps_when_it_is_due_and_only_then():
    model, runs = unet(), []
    model.down[0][0].register_forward_hook(lambda *_: runs.append("outer"))
    model.down[1][0].register_forward_hook(lambda *_: runs.append("middle"))
    model.centre[0].register_forward_hook(lambda *_: runs.append("centre"))
    _, state = model(ids(2, 1))
    assert state.position_B.tolist() == [1, 1]
    per_step = []
    for _ in range(12):
        runs.clear()
        _, state = model(ids(2, 1), state)
        per_step.append("".join(name[0] for name in runs))
    assert per_step == ["om", "o", "om", "o", "omc", "o"] * 2
    assert state.position_B.tolist() == [1, 1]
    assert state.position_B.device.type == "cpu"


def test_state_has_one_shape_from_the_first_position_on():
    model = unet()
    shapes = []
    for length in (1, 2, 5, 6, 7, 13):
        _, state = model(ids(2, length))
        shapes.append([tuple(tensor.shape) for tensor in state_tensors(state)])
    assert all(shape == shapes[0] for shape in shapes)
    assert {shape[0] for shape in shapes[0]} == {2}


def test_rows_out_of_step_go_on_as_they_would_alone():
    model, ids_BL = unet(), ids(3, 40)
    with torch.no_grad():
        states = [model(ids_BL[row : row + 1, :start])[1] for row, start in enumerate((4, 7, 12))]
        state = concat_states(states)
        for first, last in ((0, 1), (1, 2), (2, 9), (9, 10)):
            pieces = torch.stack([ids_BL[row, start + first : start + last] for row, start in enumerate((4, 7, 12))])
            together, state = model(pieces, state)
            for row in range(3):
                alone, states[row] = model(pieces[row : row + 1], states[row])
                testing.assert_same(together[row : row + 1], alone, f"row {row}")
                testing.assert_same_state(select_state(state, [row]), states[row], f"row {row}")


def test_gradients_of_rows_out_of_step():
    model, ids_BL = unet(), ids(2, 20)

    def gradients(together: bool):
        states = [model(ids_BL[:1, :5])[1], model(ids_BL[1:, :7])[1]]
        pieces = torch.stack([ids_BL[0, 5:15], ids_BL[1, 7:17]])
        if together:
            hidden = model(pieces, concat_states(states))[0]
        else:
            hidden = torch.cat([model(pieces[row : row + 1], states[row])[0] for row in range(2)])
        return torch.autograd.grad((hidden * torch.arange(16).cos()).sum(), list(model.parameters()))

    for (name, _), actual, expected in zip(model.named_parameters(), gradients(True), gradients(False), strict=True):
        testing.assert_same(actual, expected, name, tolerance=1e-4)


def test_a_packed_sequence_shorter_than_the_pooling_is_not_refused():
    model = unet(pool=[4, 4])
    row, cu_seqlens = ids(1, 9), torch.tensor([0, 1, 4, 9])
    with torch.no_grad():
        hidden, state = model(row, cu_seqlens=cu_seqlens)
        alone, _ = model(row[:, 1:4])
    assert state.position_B.tolist() == [1, 3, 5]
    testing.assert_same(hidden[:, 1:4], alone, "the second sequence")


def test_generation_agrees_with_reading_the_whole():
    backbone = unet(pool=[2, 2])
    model = SequenceModel(backbone, NextTokenHead(d_model=16, vocab_size=11)).eval()
    prompts = ids(2, 5)
    made = generate(model, 13, start_id=0, prompt_ids=prompts, sampling=Sampling(seed=3))
    whole = torch.cat([torch.zeros(2, 1, dtype=torch.int64), prompts, made.ids_BL], dim=1)
    with torch.no_grad():
        logits = model(whole[:, :-1])[0]
    log_p = torch.log_softmax(logits, dim=-1).gather(-1, whole[:, 1:, None]).squeeze(-1)[:, 5:]
    torch.testing.assert_close(made.log_likelihood_BL, log_p, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_runs_in_other_dtypes(dtype):
    model, ids_BL = unet().to(dtype), ids(2, 25)
    hidden, state = model(ids_BL[:, :10])
    rest, _ = model(ids_BL[:, 10:], state)
    assert hidden.dtype == rest.dtype == dtype
    assert state.tier.waiting.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    whole = model(ids_BL)[0]
    limit = 0.1 if dtype == torch.bfloat16 else 1e-9
    assert (torch.cat([hidden, rest], dim=1) - whole).abs().max() < limit


def test_bf16_autocast_is_near_fp32_and_any_cut_is_the_whole():
    model, ids_BL = unet(n_layers=2), ids(2, 50)
    with torch.no_grad():
        exact, _ = model(ids_BL)
        with torch.autocast("cpu", torch.bfloat16):
            whole, _ = model(ids_BL)
            first, state = model(ids_BL[:, :17])
            second, _ = model(ids_BL[:, 17:], state)
    error = (whole.float() - exact).norm() / exact.norm()
    assert 1e-5 < error < 0.02
    assert (torch.cat([first, second], dim=1).float() - whole.float()).abs().max() < 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": []}, r"pool=\[\]: must be one or more pooling factors of at least 2"),
        ({"pool": [4, 1]}, r"pool=\[4, 1\]"),
        ({"expand": [2]}, r"expand=\[2\]: must be one number, or one for each of the 2 pooling factors"),
        ({"expand": 0}, "expand=0"),
        ({"n_layers": 0}, "n_layers=0"),
        ({"outer": "M"}, r"letter 'M' \(mamba2\) at position 0"),
        ({"centre": ""}, "pattern=''"),
    ],
)
def test_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        unet(**settings)
