"""What a model computes in: names, what is refused, and that nothing of it lasts."""

from __future__ import annotations

import pytest
import torch

from seqmodels.backbones.stack import Stack
from seqmodels.heads.next_token import NextTokenHead
from seqmodels.inference import token_log_likelihood
from seqmodels.inference.precision import in_precision
from seqmodels.layers.mamba import Mamba
from seqmodels.model import SequenceModel


def model_of() -> SequenceModel:
    torch.manual_seed(0)
    backbone = Stack(vocab_size=12, d_model=16, n_layers=2, layer=Mamba)
    return SequenceModel(backbone, NextTokenHead(d_model=16, vocab_size=12)).eval()


def nats(model: SequenceModel) -> torch.Tensor:
    ids_BL = torch.randint(7, 11, (2, 40), generator=torch.Generator().manual_seed(1)).to(
        model.backbone.embedding.weight.device
    )
    return token_log_likelihood(model, ids_BL, start_id=2)[0]


def test_bf16_rounds_a_copy_and_leaves_the_model():
    model = model_of()
    exact = nats(model)
    with in_precision(model, "bf16") as rounded:
        assert rounded.backbone.embedding.weight.dtype == torch.bfloat16
        blurred = nats(rounded)
    assert blurred.dtype == torch.float32
    assert 0 < float((blurred - exact).abs().max()) < 0.05
    with in_precision(model, "fp32") as same:
        assert same is model
        assert torch.equal(nats(same), exact)


def test_what_is_no_precision_is_refused():
    with pytest.raises(ValueError, match="precision='fp8' must be one of fp32, tf32"), in_precision(model_of(), "fp8"):
        pass
    with pytest.raises(ValueError, match="of GPUs; on a CPU take fp32"), in_precision(model_of(), "tf32"):
        pass


def test_fp32_is_fp32_also_where_the_process_allows_less_and_that_is_put_back():
    torch.set_float32_matmul_precision("high")
    try:
        with in_precision(model_of(), "fp32"):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.gpu
def test_tf32_on_a_gpu_is_near_fp32_and_does_not_last():
    model = model_of().cuda()
    exact = nats(model)
    with in_precision(model, "tf32") as same:
        near = nats(same)
    torch.testing.assert_close(near, exact, rtol=0, atol=0.02)
    assert torch.get_float32_matmul_precision() == "highest"
