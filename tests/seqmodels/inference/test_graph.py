"""Copies for decoding, and steps as CUDA graphs."""

from __future__ import annotations

import contextlib
import types

import pytest
import torch

from seqmodels.backbones.stack import Stack
from seqmodels.backbones.unet import UNet
from seqmodels.heads.next_token import NextTokenHead
from seqmodels.inference import Sampling, generate
from seqmodels.inference.graph import cuda_graph, decoding_copy
from seqmodels.layers.mamba import Mamba
from seqmodels.model import SequenceModel


def small_model(tied: bool = True) -> SequenceModel:
    torch.manual_seed(0)
    backbone = Stack(vocab_size=12, d_model=32, n_layers=2, layer=Mamba)
    return SequenceModel(backbone, NextTokenHead(d_model=32, vocab_size=12, tied=tied))


@pytest.mark.parametrize("tied", [True, False])
def test_a_decoding_copy_keeps_in_fp32_what_the_scan_reads(tied: bool):
    model = small_model(tied)
    copied = decoding_copy(model, torch.bfloat16)
    in_bf16 = {name for name, parameter in copied.named_parameters() if parameter.dtype == torch.bfloat16}
    matrices = tuple(f"{name}.weight" for name in ("embedding", "lm_head", "in_proj", "x_proj", "dt_proj", "out_proj"))
    assert in_bf16 == {name for name, _ in copied.named_parameters() if name.endswith(matrices)}
    assert (copied.head.weight is copied.backbone.embedding.weight) == tied
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters()), "the model itself stays as it is"


def test_a_decoding_copy_predicts_what_the_model_predicts():
    model = small_model()
    ids_BL = torch.randint(0, 12, (2, 50))
    with torch.no_grad():
        expected, got = model(ids_BL)[0], decoding_copy(model, torch.bfloat16)(ids_BL)[0]
    assert (expected - got).abs().max() < 0.02 * expected.abs().max()


def test_a_kept_a_follows_its_parameter():
    """A is kept between decoding steps; a changed A_log must change it."""
    layer = Mamba(8)
    with torch.no_grad():
        before = layer._a_EN()
        assert layer._a_EN() is before
        layer.A_log.add_(1)
        assert torch.allclose(layer._a_EN(), before * torch.e)


@pytest.mark.parametrize("cycle", [1, 2, 6])
def test_graphs_of_a_cycle_are_replayed_in_turn(monkeypatch, cycle):
    """With stand-ins for torch's CUDA calls: a step whose host code depends on its number modulo the cycle."""
    position, replayed, capturing = torch.tensor([1]), [], []

    class Graph:
        def pool(self):
            return "pool"

        def replay(self):
            replayed.append(self.phase)

    @contextlib.contextmanager
    def capture(graph, pool=None):
        assert pool == ("pool" if capturing else None)
        graph.phase = int(position)
        capturing.append(graph)
        yield

    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    fakes = {"Stream": lambda: stream, "current_stream": lambda: stream, "CUDAGraph": Graph, "graph": capture}
    for name, fake in {**fakes, "stream": lambda side: contextlib.nullcontext()}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    position %= cycle
    first = int(position)
    replay = cuda_graph(lambda: position.copy_((position + 1) % cycle), [position], cycle)
    for _ in range(2 * cycle):
        replay()
    assert int(position) == first, "what warming up and capturing changed is put back"
    assert replayed == [(first + number) % cycle for number in range(2 * cycle)]


@pytest.mark.gpu
@pytest.mark.parametrize("pool", [[2], [2, 3]])
def test_graphs_of_a_unet_and_cpu_draw_the_same(pool, caplog):
    torch.manual_seed(0)
    backbone = UNet(vocab_size=12, d_model=32, pool=pool, n_layers=1, outer="m", centre="m", layers={"m": Mamba})
    model = SequenceModel(backbone, NextTokenHead(d_model=32, vocab_size=12)).eval()
    prompt = torch.arange(7) % 12
    on_cpu = generate(model, 200, start_id=2, prompt_ids=prompt, batch_size=2, chunk_len=64)
    on_gpu = generate(model.cuda(), 200, start_id=2, prompt_ids=prompt, batch_size=2, chunk_len=64)
    assert "one by one" not in caplog.text
    assert (on_cpu.ids_BL == on_gpu.ids_BL.cpu()).float().mean() > 0.99  # a draw on the edge may fall the other way
    torch.testing.assert_close(on_cpu.log_likelihood_B, on_gpu.log_likelihood_B.cpu(), rtol=1e-3, atol=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("batch_size", [1, 3])
def test_graph_and_cpu_draw_the_same(batch_size: int):
    model = small_model().eval()
    sampling = Sampling(top_k=5, top_p=0.95, temperature=0.9, allowed_ids=(7, 8, 9, 10))
    on_cpu = generate(model, 300, start_id=2, batch_size=batch_size, sampling=sampling, chunk_len=64)
    on_gpu = generate(model.cuda(), 300, start_id=2, batch_size=batch_size, sampling=sampling, chunk_len=64)
    assert (on_cpu.ids_BL == on_gpu.ids_BL.cpu()).float().mean() > 0.99  # a draw on the edge may fall the other way
    torch.testing.assert_close(on_cpu.log_likelihood_B, on_gpu.log_likelihood_B.cpu(), rtol=1e-3, atol=0.1)
