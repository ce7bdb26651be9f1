"""The stack: initialisation, the residual stream, recomputation in backward."""

from __future__ import annotations

import functools

import pytest
import torch

from seqmodels.backbones.stack import Stack
from seqmodels.layers.mamba import Mamba
from seqmodels.layers.state import detach_state, select_state


def stack(**kwargs) -> Stack:
    torch.manual_seed(0)
    return Stack(**{"vocab_size": 6, "d_model": 32, "n_layers": 4, "layer": Mamba, **kwargs})


def test_published_initialisation():
    torch.manual_seed(0)
    wide = Stack(vocab_size=4000, d_model=128, n_layers=4, layer=Mamba)
    assert wide.embedding.weight.std().item() == pytest.approx(0.02, rel=0.02)
    torch.manual_seed(0)
    alone = Mamba(128)  # kaiming_uniform(a=sqrt(5)): uniform within 1/sqrt(fan in)
    bound = (2 * 128) ** -0.5
    assert alone.out_proj.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    for block in wide.layers:
        assert block.mixer.out_proj.weight.abs().max().item() == pytest.approx(bound / 2, rel=0.01)
        assert block.mixer.in_proj.weight.abs().max().item() == pytest.approx(128**-0.5, rel=0.01)


def test_is_embedding_plus_blocks():
    model = stack()
    ids_BL = torch.randint(0, 6, (2, 9))
    residual = model.embedding(ids_BL)
    for block in model.layers:
        residual = residual + block.mixer(block.norm(residual))[0]
    torch.testing.assert_close(model(ids_BL)[0], model.norm_f(residual), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("in_fp32", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_dtype_of_the_residual_stream(in_fp32, dtype):
    model = stack(residual_in_fp32=in_fp32).bfloat16()
    seen = []
    model.layers[2].register_forward_hook(lambda module, args, result: seen.append(result[1].dtype))
    model(torch.randint(0, 6, (1, 5)))
    assert seen == [dtype]


def test_recomputing_blocks_changes_no_gradient():
    ids_BL = torch.randint(0, 6, (2, 17))
    grads = []
    for flag in (False, True):
        model = stack(checkpoint_blocks=flag)
        first, state = model(ids_BL[:, :8])
        second, _ = model(ids_BL[:, 8:], state)
        (first.square().sum() + second.square().sum()).backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        assert torch.equal(plain, recomputed)


def test_recomputing_blocks_saves_memory():
    def saved_bytes(flag: bool) -> int:
        total, seen = 0, set()

        def pack(tensor):
            nonlocal total
            if tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                total += tensor.numel() * tensor.element_size()
            return tensor

        model = stack(checkpoint_blocks=flag)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden, _ = model(torch.randint(0, 6, (2, 256)))
        assert hidden.requires_grad
        return total

    assert saved_bytes(True) < 0.4 * saved_bytes(False)


@pytest.mark.usefixtures("unchecked_shapes")
def test_compiles_into_one_graph():
    model, ids_BL = stack(n_layers=2), torch.randint(0, 6, (2, 17))
    hidden, state = model(ids_BL)
    state = detach_state(state)
    expected = torch.autograd.grad(hidden.square().sum(), list(model.parameters()))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    hidden, _ = compiled(ids_BL)
    actual = torch.autograd.grad(hidden.square().sum(), list(model.parameters()))
    for compiled_grad, grad in zip(actual, expected, strict=True):
        torch.testing.assert_close(compiled_grad, grad)
    torch.testing.assert_close(compiled(ids_BL, state)[0], model(ids_BL, state)[0])


@pytest.mark.parametrize("argument", ["vocab_size", "d_model", "n_layers", "pad_vocab_to"])
def test_refuses_sizes_below_one(argument):
    with pytest.raises(ValueError, match=f"{argument}=0"):
        stack(**{argument: 0})


def test_layer_factories_may_differ_by_their_arguments():
    model = stack(layer=functools.partial(Mamba, d_state=3))
    assert {mixer.d_state for mixer in model.mixers} == {3}


def test_steps_behind_a_norm_are_taken_only_where_they_may_be(monkeypatch):
    calls = []

    def step(layer, norm, x_B1D, residual_B1D, state):
        calls.append(residual_B1D is None)
        total_B1D = x_B1D if residual_B1D is None else x_B1D + residual_B1D
        y_B1D, state = layer(norm(total_B1D), state)
        return y_B1D, total_B1D, state

    plain, ids_BL = stack().eval(), torch.randint(0, 6, (2, 7))
    with torch.no_grad():
        _, state = plain(ids_BL)
        expected, _ = plain(ids_BL[:, :1], state)
    monkeypatch.setattr(Mamba, "step_behind_norm", step)
    plain(ids_BL[:, :1], state)
    with torch.no_grad():
        plain(ids_BL, state)
        plain(ids_BL[:, :1])
        packed = torch.tensor([0, 1])
        plain(ids_BL[:1, :1], select_state(state, [0]), cu_seqlens=packed)
        stack(residual_in_fp32=False)(ids_BL[:, :1], state)
        assert not calls, "gradients, several positions, no state, packing, another residual stream"
        got, _ = plain(ids_BL[:, :1], state)
    assert calls == [True, False, False, False]
    torch.testing.assert_close(got, expected)
