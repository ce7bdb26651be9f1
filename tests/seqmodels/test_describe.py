"""Descriptions: counts by part, state, and memory that follows from shapes."""

from __future__ import annotations

import functools
import math
import pathlib

import pytest
import torch

from seqmodels.describe import COMMON_GPUS, GIB, OVERHEAD_BYTES, describe, optimizer_bytes_per_parameter
from seqmodels.instantiate import build
from seqmodels.layers.state import state_bytes
from seqmodels.model import model_spec

LAYERS = sorted(path.stem for path in (pathlib.Path(__file__).parents[2] / "conf/layer").glob("*.yaml"))
ONE_GPU = {"one": 80 * GIB}


@pytest.fixture
def spec(compose):
    def make(backbone: str, *words: str, head: str = "next_token", **head_keys) -> dict:
        written = {**compose("head", head), **head_keys}
        return model_spec(compose("backbone", backbone, *words), written, vocab_size=12, num_classes=3)

    return make


def real(spec: dict, length: int) -> tuple[torch.nn.Module, object]:
    model = build(spec)
    with torch.no_grad():
        return model, model(torch.zeros(1, length, dtype=torch.int64))[1]


def test_parts_add_up(spec):
    facts = describe(spec("mamba2_hybrid_small"), length=64, gpus=ONE_GPU)
    assert facts.parameters == 6_465_168
    assert facts.parameters == sum(facts.parameters_by_part.values())
    assert facts.parameters_by_part["embedding"] == 16 * 256
    assert facts.parameters_by_part["norms"] == 15 * 256
    assert facts.parameters_by_part["MLP"] == 7 * 8 * 256 * 256
    assert set(facts.parameters_by_part) == {"embedding", "norms", "Mamba2", "Attention", "MLP"}  # the head is tied
    assert facts.flops_per_token == pytest.approx(sum(facts.flops_by_part.values()))
    assert facts.flops_by_part["MLP"] == 7 * 2 * 8 * 256 * 256
    assert facts.flops_by_part["head"] == 2 * 16 * 256


def test_an_own_head_and_pooling_are_parts(spec):
    words = ("backbone.d_model=16", "backbone.n_layers=1")
    facts = describe(spec("unet", *words, tied=False), length=32, gpus=ONE_GPU)
    assert facts.parameters_by_part["head"] == 16 * 16
    pools = (64 * 32 + 32) + (128 * 64 + 64) + (64 * 128 + 128) + (32 * 64 + 64)
    assert facts.parameters_by_part["pooling"] == pools
    assert facts.flops_by_part["pooling"] > 0
    assert "other" not in facts.parameters_by_part


@pytest.mark.parametrize("name", ["mamba_tiny", "mamba2_hybrid_small", "unet"])
def test_state_is_what_a_real_model_carries(spec, name):
    words = {"unet": ["backbone.n_layers=1"], "mamba_tiny": ["backbone.n_layers=2"]}.get(name, [])
    made = spec(name, "backbone.d_model=64", *words)
    facts = describe(made, length=40, batch=3, precision="32-true", gpus=ONE_GPU)
    _, state = real(made, 40)
    assert facts.state_bytes == state_bytes(state)
    _, state = real(made, 1)
    assert facts.state_bytes_at_start == state_bytes(state)
    assert (facts.state_bytes > facts.state_bytes_at_start) == (name == "mamba2_hybrid_small")


def test_state_of_a_cache_grows_over_all_pieces(spec):
    made = spec("transformer", "backbone.d_model=32", "backbone.n_layers=2")
    length = 2**16 + 100  # read in two pieces
    facts = describe(made, length=length, gpus=ONE_GPU)
    assert facts.state_bytes == 2 * length * 32 * 2  # keys and values in bf16


def test_gradients_weights_and_optimizer(spec):
    facts = describe(spec("mamba_tiny"), length=16, precision="32-true", gpus=ONE_GPU)
    memory = facts.training[0]
    assert memory.weights_bytes == memory.gradients_bytes == 4 * facts.parameters
    assert memory.optimizer_bytes == 8 * facts.parameters
    assert memory.peak_bytes >= 16 * facts.parameters


@pytest.mark.parametrize(("optimizer", "expected"), [(torch.optim.AdamW, 8), (torch.optim.SGD, 0)])
def test_state_of_an_optimizer(optimizer, expected):
    assert optimizer_bytes_per_parameter(functools.partial(optimizer, lr=0.1)) == expected
    momentum = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    assert optimizer_bytes_per_parameter(momentum) == 4


DEPTH = 3  # two blocks and a last one, whose output the final norm reads


def kept(spec, *words: str, length: int = 2**14, **settings) -> float:
    made = spec("mamba_tiny", f"backbone.n_layers={DEPTH}", *words)
    return describe(made, length=length, gpus=ONE_GPU, **settings).training[0].activations_bytes


def test_activations_of_mamba_follow_from_its_shapes(spec):
    """What each level keeps differs by whole tensors: kernels/seqkernels/mamba_inner/README.md lists them."""
    L, E, layers, states = 2**14, 128, DEPTH, 16
    nothing, inputs, everything = (kept(spec, f"backbone.layer.recompute={x}") for x in ("nothing", "inputs", "all"))
    assert nothing - inputs == pytest.approx(layers * 2 * 2 * L * E, rel=0.02)  # the convolution's output, step sizes
    # the scan's output and gated output (bf16), its states (fp32, every 4 positions), and the small x_proj
    small = 2 * (4 + 2 * states)
    assert inputs - everything == pytest.approx(layers * L * (E * (2 + 2 + 4 * states / 4) + small), rel=0.02)


def test_activations_grow_with_tokens_and_recomputing_blocks_keeps_their_inputs(spec):
    once, twice = kept(spec), kept(spec, length=2**15)
    assert twice == pytest.approx(2 * once, rel=0.01)
    assert kept(spec, batch=2) == pytest.approx(2 * once, rel=0.01)
    lean = kept(spec, "backbone.checkpoint_blocks=true")
    # between blocks: fp32 residual and bf16 output of the mixer; the last block's are read by the final norm
    assert lean == pytest.approx(DEPTH * 2**14 * 64 * (4 + 2), rel=0.35)
    assert lean < 0.2 * once


def test_what_is_saved_depends_on_the_gpu_and_so_does_the_answer(spec):
    facts = describe(spec("dna_1m", "backbone.n_layers=2"), length=2**20)
    small, middle, large = facts.training
    assert [memory.gpu for memory in facts.training] == list(COMMON_GPUS)
    assert small.activations_bytes < middle.activations_bytes < large.activations_bytes
    for memory in facts.training:
        assert memory.fits == (memory.peak_bytes + OVERHEAD_BYTES <= memory.gpu_bytes) == (memory.longest >= 2**20)


def test_longest_is_the_length_that_just_fits(spec):
    made = spec("mamba2", "backbone.n_layers=2")
    longest = describe(made, length=2**14, gpus=ONE_GPU).training[0].longest
    assert describe(made, length=int(0.97 * longest), gpus=ONE_GPU).training[0].fits
    assert not describe(made, length=int(1.03 * longest), gpus=ONE_GPU).training[0].fits


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_that_ships_can_be_described(spec, compose, name):
    layer = compose("layer", name)
    try:
        built = build(layer)(64)
    except ImportError as error:
        pytest.skip(str(error))
    if built.needs_gpu:
        pytest.skip("runs on a GPU only")
    made = spec("stack", "backbone.n_layers=2", "backbone.d_model=64", head="classification")
    made["backbone"]["layer"] = layer
    facts = describe(made, length=300, gpus=ONE_GPU)
    assert facts.training[0].activations_bytes > 2 * 300 * 64 * 2
    assert facts.flops_per_token > 2 * 2 * 64 * 64
    assert (facts.state_bytes is None) == (not built.is_causal)


def test_classification(spec):
    facts = describe(spec("mamba_tiny", head="classification"), length=100, batch=2, gpus=ONE_GPU)
    assert facts.parameters_by_part["head"] > 0


def test_nothing_is_allocated(spec):
    """2.8 billion parameters and a million positions, on any machine."""
    facts = describe(spec("mamba_2b8", "backbone.n_layers=2"), length=2**20, gpus=ONE_GPU)
    assert facts.training[0].peak_bytes > 50 * GIB
    assert not facts.training[0].fits


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "length=0"),
        ({"batch": 0}, "batch=0"),
        ({"precision": "fp8"}, r"precision='fp8' must be one of bf16-mixed, 32-true"),
        ({"gpus": {}}, "gpus is empty"),
    ],
)
def test_refuses(spec, settings, message):
    with pytest.raises(ValueError, match=message):
        describe(spec("mamba_tiny"), **{"length": 8, **settings})


def test_a_sequential_layer_is_carried_on_from_two_short_runs(spec, compose):
    made = spec("stack", "backbone.n_layers=1", "backbone.d_model=32")
    made["backbone"]["layer"] = compose("layer", "lstm")
    short, long = (describe(made, length=length, gpus=ONE_GPU) for length in (128, 2**20))
    assert long.flops_per_token == pytest.approx(short.flops_per_token, rel=0.02)
    assert long.state_bytes == short.state_bytes
    assert math.isclose(long.training[0].activations_bytes / short.training[0].activations_bytes, 2**13, rel_tol=0.05)


@pytest.mark.gpu
@pytest.mark.parametrize("backbone", ["dna_1m", "mamba2", "transformer", "unet_sc09_6m"])
def test_a_measured_peak_is_near_the_estimate(spec, backbone):
    """experiments/describe has larger ones, and by how much they differ."""
    made, length = spec(backbone), 2**16
    gpus = {"this": torch.cuda.get_device_properties(0).total_memory}
    estimated = describe(made, length=length, gpus=gpus).training[0].peak_bytes
    with torch.device("cuda"):
        model = build(made)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids_BL = torch.zeros(1, length, dtype=torch.int64, device="cuda")
    before = torch.cuda.memory_allocated() - sum(p.numel() * 4 for p in model.parameters())  # of other tests
    for _ in range(3):
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(ids_BL)[0].flatten(0, 1).float(), ids_BL.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    measured = torch.cuda.max_memory_allocated() - before
    assert measured == pytest.approx(estimated, rel=0.12)
