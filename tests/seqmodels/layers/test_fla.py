"""The adapter to flash-linear-attention: with a stand-in for the package, without it, and (where it is) with it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import types

import pytest
import torch
from torch import nn

from seqmodels import testing
from seqmodels.layers.fla import INSTALL, KINDS, FlaLayer
from seqmodels.layers.state import concat_states, select_state


class StandInCache:
    """fla's cache as far as its layers and the adapter use it."""

    def __init__(self):
        self.states, self.seen = [], 0

    @classmethod
    def from_legacy_cache(cls, past_key_values, seen_tokens=0):
        cache = cls()
        cache.states, cache.seen = [dict(state) for state in past_key_values], seen_tokens
        return cache

    def __getitem__(self, index):
        return self.states[index]


class StandInLayer(nn.Module):
    """A decayed sum, a short convolution whose cache it overwrites, and (if asked) the position: what kinds keep."""

    knows_positions = False
    one_input = False

    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        assert hidden_size % num_heads == 0, f"num_heads {num_heads}"
        self.options = kwargs
        self.decay = nn.Parameter(torch.tensor(0.9))
        self.o_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states, past_key_values=None, use_cache=False, cu_seqlens=None):
        if cu_seqlens is not None:
            spans = list(zip(cu_seqlens.tolist()[:-1], cu_seqlens.tolist()[1:]))
            parts = [self._scan(hidden_states[:, a:b], None, 0) for a, b in spans]
            y, sums, last = (torch.cat([part[i] for part in parts], dim=d) for i, d in ((0, 1), (1, 0), (2, 0)))
        else:
            old = past_key_values.states[0] if past_key_values.states else None
            y, sums, last = self._scan(hidden_states, old, past_key_values.seen)
        kept = last if self.one_input else [last]
        past_key_values.states = [
            {"recurrent_state": sums, "conv_state": kept, "attn_state": None, "ffn_state": None}
        ]
        return self.o_proj(y), None, past_key_values

    def _scan(self, x, old, seen):
        sums = x.new_zeros(len(x), x.shape[-1]) if old is None else old["recurrent_state"]
        last = x.new_zeros(len(x), x.shape[-1]) if old is None else old["conv_state"]
        last = last[0] if isinstance(last, list | tuple) else last
        outputs = []
        for t in range(x.shape[1]):
            sums = self.decay * sums + x[:, t]
            outputs.append(sums + 0.5 * last + (0.01 * (seen + t) if self.knows_positions else 0))
            if not torch.is_grad_enabled():
                last.copy_(x[:, t])  # in place, as fla does: the adapter must have given it a copy
            else:
                last = x[:, t]
        return torch.stack(outputs, dim=1), sums, last.clone()


@pytest.fixture
def stand_in(monkeypatch):
    """Puts stand-ins where the package would be, every kind with its own habits."""
    layers, models = types.ModuleType("fla.layers"), types.ModuleType("fla.models.utils")
    for kind, name in KINDS.items():
        habits = {"knows_positions": kind == "retnet", "one_input": kind.startswith("rwkv")}
        setattr(layers, name, type(name, (StandInLayer,), habits))
    models.Cache = StandInCache
    monkeypatch.setitem(sys.modules, "fla.layers", layers)
    monkeypatch.setitem(sys.modules, "fla.models.utils", models)
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "rwkv6"])
def test_laws(kind, stand_in):
    torch.manual_seed(0)
    testing.check_laws(FlaLayer(8, kind=kind), torch.randn(3, 19, 8))


def test_laws_of_rwkv6_whose_state_has_no_gradient_behind_short_pieces(stand_in):
    torch.manual_seed(0)
    layer, x_BLD = FlaLayer(8, kind="rwkv6"), torch.randn(3, 19, 8)
    testing.check_any_cut(layer, x_BLD)
    testing.check_packing(layer, x_BLD)
    _, state = layer(x_BLD)
    with pytest.raises(RuntimeError, match="up to 64 positions"):
        layer(x_BLD, state)[0].sum().backward()
    testing.check_gradients_through_state(layer, torch.randn(2, 150, 8), at=65)


@pytest.mark.parametrize("kind", ["retnet", "gla"])
def test_rows_at_unequal_positions(kind, stand_in):
    layer = FlaLayer(8, kind=kind)
    with torch.no_grad():
        states = [layer(torch.randn(1, length, 8))[1] for length in (3, 7)]
        more = torch.randn(2, 4, 8)
        y, joined = layer(more, concat_states(states))
        for row in range(2):
            alone, state = layer(more[[row]], states[row])
            testing.assert_same(y[[row]], alone, f"row {row}")
            testing.assert_same_state(select_state(joined, [row]), state, f"row {row}")


def test_the_state_given_is_left_as_it_was(stand_in):
    layer = FlaLayer(8, kind="deltanet")
    with torch.no_grad():
        _, state = layer(torch.randn(2, 3, 8))
        before = state.inputs.tensors[0].clone()
        layer(torch.randn(2, 1, 8), state)
    assert torch.equal(state.inputs.tensors[0], before)


def test_refusals(stand_in, monkeypatch):
    with pytest.raises(ValueError, match="kind='glaa': must be one of retnet, gla"):
        FlaLayer(8, kind="glaa")
    with pytest.raises(ValueError, match="no option 'num_head'; did you mean 'num_heads'"):
        FlaLayer(8, kind="gla", num_head=2)
    with pytest.raises(ValueError, match=r"d_model=8 and \{'num_heads': 3\}: num_heads 3"):
        FlaLayer(8, kind="gla", num_heads=3)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="needs a CUDA GPU"):
        FlaLayer(8)(torch.randn(1, 3, 8))


def test_without_the_package_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "fla.layers", None)
    with pytest.raises(ImportError, match="flash-linear-attention") as error:
        FlaLayer(8)
    assert INSTALL in str(error.value)


IN_THE_INTERPRETER = """
import sys, warnings
import domains.audio.torchaudio_guard as guard
guard.install()  # transformers, which fla imports, imports torchaudio
warnings.simplefilter("ignore")
import torch
from triton.runtime.autotuner import Autotuner
Autotuner._bench = lambda *args, **kwargs: [1.0, 1.0, 1.0]  # nothing to measure: take the first configuration
from seqmodels import testing
from seqmodels.layers.fla import FlaLayer
torch.manual_seed(0)
kind, options = sys.argv[1], eval(sys.argv[2])
testing.check_laws(FlaLayer(32, kind=kind, **options), torch.randn(2, 17, 32))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options"), [("gla", {"num_heads": 2}), ("hgrn2", {"expand_ratio": 16})])
def test_laws_of_the_package_itself_in_tritons_interpreter(kind, options):
    if importlib.util.find_spec("fla") is None or importlib.util.find_spec("triton") is None:
        pytest.skip("flash-linear-attention is not installed")
    command = [sys.executable, "-c", IN_THE_INTERPRETER, kind, repr(options)]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "rwkv6"])
def test_laws_of_the_package_itself(kind, monkeypatch):
    pytest.importorskip("fla", reason="flash-linear-attention is not installed")
    monkeypatch.setenv("TRITON_F32_DEFAULT", "ieee")
    torch.manual_seed(0)
    layer = FlaLayer(128, kind=kind).cuda()
    x_BLD = torch.randn(2, 150, 128, device="cuda")
    testing.check_causality(layer, x_BLD)
    testing.check_any_cut(layer, x_BLD, [[1], [64, 66], [149]])
    testing.check_gradients_through_state(layer, x_BLD, at=70)
    testing.check_packing(layer, x_BLD)
