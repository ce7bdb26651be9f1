"""Attention against the plain float64 formula, its caches, its published names. The laws run on many variants."""

from __future__ import annotations

import math

import pytest
import torch

from seqmodels import testing
from seqmodels.layers import attention
from seqmodels.layers.attention import Attention, rotate
from seqmodels.layers.kv_cache import KVCache, PaddedKVCache, WindowCache
from seqmodels.layers.state import (
    concat_states,
    detach_state,
    reserve_state,
    select_state,
    state_bytes,
    updating_in_place,
)

VARIANTS = {
    "plain": {"rotary_dim": 0},
    "rotary": {},
    "partly rotary": {"rotary_dim": 2, "rotary_base": 100.0},
    "grouped": {"n_kv_heads": 2},
    "one key head, wide": {"n_kv_heads": 1, "head_dim": 6},
    "window": {"window": 5},
    "window of one": {"window": 1},
    "window grouped": {"window": 4, "n_kv_heads": 2, "d_conv": 3},
    "window beyond the length": {"window": 100},
    "convolution": {"d_conv": 4},
    "biases": {"qkv_bias": True, "out_bias": True},
    "both ways": {"causal": False},
    "both ways grouped": {"causal": False, "n_kv_heads": 2, "rotary_dim": 4},
}


def make(name: str = "rotary", d_model: int = 16, **arguments) -> Attention:
    torch.manual_seed(1)
    layer = Attention(d_model, **{"n_heads": 4} | VARIANTS[name] | arguments)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def by_hand(layer: Attention, x_BLD: torch.Tensor) -> torch.Tensor:
    """One query, one head, one exponential at a time; rotation as multiplication of complex numbers."""
    B, L, _ = x_BLD.shape
    H, G, P, R = layer.n_heads, layer.n_kv_heads, layer.head_dim, layer.rotary_dim
    qkv = x_BLD @ layer.in_proj.weight.T + (0 if layer.in_proj.bias is None else layer.in_proj.bias)
    if layer.conv1d is not None:
        padded = torch.nn.functional.pad(qkv.mT, (layer.conv1d.weight.shape[-1] - 1, 0))
        qkv = torch.nn.functional.conv1d(padded, layer.conv1d.weight, layer.conv1d.bias, groups=qkv.shape[-1]).mT
    q, k, v = (part.reshape(B, L, -1, P) for part in qkv.split([H * P, G * P, G * P], dim=-1))

    def turn(vector, position):
        speed = torch.tensor([layer.rotary_base ** (-2 * i / R) for i in range(R // 2)], dtype=torch.float64)
        pairs = torch.complex(vector[: R // 2], vector[R // 2 : R])
        turned = pairs * torch.polar(torch.ones_like(speed), position * speed)
        return torch.cat([turned.real, turned.imag, vector[R:]])

    rows = []
    for b in range(B):
        for i in range(L):
            heads = []
            for h in range(H):
                g = h // (H // G)
                last = i if layer.is_causal else L - 1
                first = 0 if layer.window is None else max(0, i - layer.window + 1)
                seen = range(first, last + 1)
                scores = [turn(q[b, i, h], i) @ turn(k[b, j, g], j) / math.sqrt(P) for j in seen]
                weights = torch.stack(scores).softmax(0)
                heads.append(sum(w * v[b, j, g] for w, j in zip(weights, seen)))
            rows.append(torch.cat(heads))
    y = torch.stack(rows).view(B, L, H * P) @ layer.out_proj.weight.T
    return y if layer.out_proj.bias is None else y + layer.out_proj.bias


@pytest.mark.parametrize("name", VARIANTS)
def test_formula(name):
    layer = make(name).double()
    x_BLD = torch.randn(2, 9, 16, dtype=torch.float64)
    torch.testing.assert_close(layer(x_BLD)[0], by_hand(layer, x_BLD), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", VARIANTS)
def test_laws(name):
    testing.check_laws(make(name), torch.randn(3, 23, 16))


def test_windowed_blocks(monkeypatch):
    """Many blocks, the last one not full; beyond the first W positions nothing is special."""
    monkeypatch.setattr(attention, "MIN_BLOCK", 1)
    layer = make("window grouped").double()
    x_BLD = torch.randn(2, 31, 16, dtype=torch.float64)
    torch.testing.assert_close(layer(x_BLD)[0], by_hand(layer, x_BLD), rtol=1e-10, atol=1e-10)
    testing.check_any_cut(layer, x_BLD, [[3, 19], [11], [4], [30]])


def test_pieces_in_blocks_of_masked_queries(monkeypatch):
    monkeypatch.setattr(attention, "MASK_ENTRIES", 40)
    testing.check_any_cut(make("grouped"), torch.randn(2, 29, 16))


def test_rotary_depends_on_distances_alone_even_far_out():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 64)
    near = rotate(q, torch.tensor([7]), 64, 10000.0).flatten() @ rotate(k, torch.tensor([3]), 64, 10000.0).flatten()
    far, near_again = torch.tensor([1_000_007]), torch.tensor([1_000_003])
    distant = rotate(q, far, 64, 10000.0).flatten() @ rotate(k, near_again, 64, 10000.0).flatten()
    torch.testing.assert_close(distant, near, rtol=1e-4, atol=1e-5)


def test_cache_keeps_the_activations_dtype():
    layer = make("convolution")
    with torch.autocast("cpu", torch.bfloat16):
        _, state = layer(torch.randn(2, 7, 16))
    assert state.k_BTGP.dtype == state.v_BTGP.dtype == torch.bfloat16
    assert state.conv.dtype == torch.float32
    assert state_bytes(state) == 2 * 2 * 7 * 16 * 2 + 2 * 3 * 48 * 4


def test_cache_of_a_window_is_constant():
    layer = make("window")
    sizes = {state_bytes(layer(torch.randn(1, length, 16))[1]) for length in (1, 4, 5, 50)}
    assert len(sizes) == 1


def test_a_state_does_not_keep_the_queries():
    _, state = make("one key head, wide")(torch.randn(2, 11, 16))
    assert state.k_BTGP.untyped_storage().nbytes() == 4 * state.k_BTGP.numel()


@pytest.mark.parametrize("name", ["grouped", "convolution", "window grouped"])
def test_prompts_of_unequal_length_continue_together(name):
    """Caches joined by rows, then a step and a longer piece: what every row gives alone."""
    layer = make(name)
    first = [torch.randn(1, length, 16) for length in (9, 4, 1)]
    with torch.no_grad():
        states = [layer(x)[1] for x in first]
        joined = concat_states(states)
        for length in (1, 6, 1):
            more = torch.randn(3, length, 16)
            y, joined = layer(more, joined)
            alone = [layer(more[[row]], states[row]) for row in range(3)]
            states = [state for _, state in alone]
            testing.assert_same(y, torch.cat([own for own, _ in alone]), f"{length} more")
            for row in range(3):
                testing.assert_same_state(select_state(joined, [row]), states[row], f"row {row}")
    expected = WindowCache if layer.window else PaddedKVCache
    assert isinstance(joined, expected)
    again = select_state(concat_states([joined, states[0]]), [3, 0])
    assert isinstance(again, WindowCache if layer.window else KVCache)


def test_gradients_reach_the_past_of_unequal_rows():
    layer = make("grouped")
    first = [torch.randn(1, length, 16, requires_grad=True) for length in (5, 3)]
    joined = concat_states([layer(x)[1] for x in first])
    layer(torch.randn(2, 2, 16), joined)[0].square().sum().backward()
    assert all(x.grad is not None and x.grad.abs().min() >= 0 and x.grad.abs().max() > 0 for x in first)


@pytest.mark.parametrize("name", ["grouped", "convolution", "window"])
def test_steps_in_place_equal_the_whole(name):
    layer = make(name)
    x_BLD = torch.randn(2, 12, 16)
    with torch.no_grad():
        whole, _ = layer(x_BLD)
        prompt, state = layer(x_BLD[:, :5])
        state = reserve_state(state, 7)
        memory = state.k_BTGP.data_ptr()
        pieces = [prompt]
        with updating_in_place():
            for t in range(5, 12):
                y, state = layer(x_BLD[:, t : t + 1], state)
                pieces.append(y)
    testing.assert_same(torch.cat(pieces, dim=1), whole, "steps in place")
    if layer.window is None:
        assert state.k_BTGP.data_ptr() == memory
        assert state.length_B.tolist() == [12, 12]


def test_room_of_rows_of_unequal_length():
    layer = make("grouped")
    first = [torch.randn(1, length, 16) for length in (6, 2)]
    step = torch.randn(2, 1, 16)
    with torch.no_grad():
        states = [layer(x)[1] for x in first]
        expected = torch.cat([layer(step[[row]], states[row])[0] for row in range(2)])
        room = reserve_state(concat_states(states), 3)
        assert room.k_BTGP.shape[1] == 9
        room.k_BTGP[1, 3:], room.v_BTGP[1, 3:] = 100.0, 7.0  # without effect
        with updating_in_place():
            y, _ = layer(step, room)
    testing.assert_same(y, expected, "a step of unequal rows")


def test_reading_past_the_room_is_not_silent():
    layer = make()
    with torch.no_grad(), updating_in_place():
        state = reserve_state(layer(torch.randn(1, 3, 16))[1], 1)
        y, state = layer(torch.randn(1, 1, 16), state)
        assert torch.isfinite(y).all()
        y, state = layer(torch.randn(1, 1, 16), state)
        assert y.isnan().all()


def test_outside_of_a_decoding_loop_reserved_room_is_left_alone():
    layer = make()
    with torch.no_grad():
        room = reserve_state(layer(torch.randn(1, 3, 16))[1], 4)
        before = detach_state(room).k_BTGP.clone()
        _, grown = layer(torch.randn(1, 1, 16), room)
    assert torch.equal(room.k_BTGP, before)
    assert isinstance(grown, KVCache)
    assert grown.k_BTGP.shape[1] == 4


def test_published_names_of_the_hybrid():
    """attn_cfg of the released mamba2attn-2.7b: 30 heads of 128, convolution 4, rotary 64, no biases, d_model 2560."""
    with torch.device("meta"):
        layer = Attention(2560, n_heads=30, head_dim=128, rotary_dim=64, d_conv=4)
    assert testing.parameter_names(layer) == {
        "in_proj.weight": (11520, 2560),
        "conv1d.weight": (11520, 1, 4),
        "conv1d.bias": (11520,),
        "out_proj.weight": (2560, 3840),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_heads": 3}, "n_heads=3: must divide d_model=16"),
        ({"n_heads": 4, "n_kv_heads": 3}, "n_kv_heads=3: must divide n_heads=4"),
        ({"n_heads": 0}, "n_heads=0"),
        ({"n_heads": 4, "head_dim": 0}, "head_dim=0"),
        ({"n_heads": 4, "rotary_dim": 3}, "rotary_dim=3: must be even and from 0 to head_dim=4"),
        ({"n_heads": 4, "rotary_dim": 6}, "rotary_dim=6"),
        ({"n_heads": 4, "rotary_base": 0.0}, "rotary_base=0.0"),
        ({"n_heads": 4, "window": 0}, "window=0"),
        ({"n_heads": 4, "d_conv": 1}, "d_conv=1: must be 0"),
        ({"n_heads": 4, "window": 3, "causal": False}, "need causal=True"),
        ({"n_heads": 4, "d_conv": 3, "causal": False}, "need causal=True"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        Attention(16, **arguments)


def test_states_that_do_not_fit_are_refused():
    layer, x_BLD = make(), torch.randn(2, 4, 16)
    _, state = layer(x_BLD)
    with pytest.raises(ValueError, match=r"KVCache \(2, 4, 4, 4\).*need a KVCache of shape \(3, positions, 4, 4\)"):
        layer(torch.randn(3, 1, 16), state)
    with pytest.raises(ValueError, match="need a WindowCache"):
        make("window")(x_BLD, state)
    with pytest.raises(ValueError, match="takes no state"):
        make("both ways")(x_BLD, state)
    with pytest.raises(ValueError, match="needs a batch of 1"):
        layer(x_BLD, cu_seqlens=torch.tensor([0, 4]))


@pytest.mark.usefixtures("unchecked_shapes")
def test_compiles_into_one_graph():
    layer, x_BLD = make("window grouped"), torch.randn(2, 20, 16)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        y_BLD, state = compiled(x_BLD)
        expected_BLD, expected = layer(x_BLD)
        testing.assert_same(y_BLD, expected_BLD, "compiled")
        testing.assert_same(compiled(x_BLD[:, :3], state)[0], layer(x_BLD[:, :3], expected)[0], "from a state")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("arguments", [{}, {"window": 1024}], ids=["all", "window"])
def test_long_pieces_take_linear_memory_on_a_gpu(dtype, arguments):
    """65,536 positions in two pieces: a mask or scores of L x L would be 4 GiB and more a head."""
    torch.manual_seed(0)
    layer = Attention(256, n_heads=4, n_kv_heads=2, **arguments).to("cuda", dtype)
    x_BLD = torch.randn(1, 2**16, 256, device="cuda", dtype=dtype)
    with torch.no_grad():
        whole, _ = layer(x_BLD)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        first, state = layer(x_BLD[:, : 2**15])
        second, _ = layer(x_BLD[:, 2**15 :], state)
        peak = torch.cuda.max_memory_allocated() - before
    assert peak < 2**30, f"{peak / 2**20:.0f} MiB"
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    testing.assert_same(torch.cat([first, second], dim=1).float(), whole.float(), "two pieces", tolerance)


@pytest.mark.gpu
def test_gradients_through_a_long_cache_on_a_gpu():
    layer = make("grouped", d_model=64, n_heads=4).cuda()
    testing.check_gradients_through_state(layer, torch.randn(2, 512, 64, device="cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["grouped", "convolution", "window"])
def test_a_cuda_graph_of_steps(name):
    from seqmodels.inference.graph import cuda_graph
    from seqmodels.layers.state import assign_state, map_state, state_tensors

    layer = make(name, d_model=64).cuda()
    x_BLD = torch.randn(2, 40, 64, device="cuda")
    with torch.no_grad():
        whole, _ = layer(x_BLD)
        state = map_state(torch.clone, reserve_state(layer(x_BLD[:, :20])[1], 24))
        x_B1D, y_B1D = x_BLD[:, 20:21].clone(), torch.empty(2, 1, 64, device="cuda")

        def step() -> None:
            with updating_in_place():
                y, new = layer(x_B1D, state)
            assign_state(state, new)
            y_B1D.copy_(y)

        replay = cuda_graph(step, list(state_tensors(state)))
        for t in range(20, 40):
            x_B1D.copy_(x_BLD[:, t : t + 1])
            replay()
            testing.assert_same(y_B1D, whole[:, t : t + 1], f"position {t}")
