"""Reverse-complement equivariance: f(RC(x)) = RC(f(x)) for layers, embedding, backbone and heads."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from domains.dna.tokenizer import COMPLEMENT_OF_ID
from seqmodels.backbones.rc_equivariant import RCPSStack
from seqmodels.heads.rc_equivariant import RCClassificationHead, RCMaskedTokenHead
from seqmodels.layers import rc_equivariant as rc
from seqmodels.layers.mamba import Mamba
from seqmodels.model import SequenceModel
from seqmodels.testing import assert_same, check_laws, check_packing

COMPLEMENT = COMPLEMENT_OF_ID.tolist()
TABLE = torch.tensor([*COMPLEMENT, 12, 13, 14, 15])
D = 6
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def perturbed(module):
    """No parameter at a special value: at initialisation the two readings of the norm nearly agree."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.requires_grad_(False)


def backbone(n_layers=3, **options):
    torch.manual_seed(0)
    layer = partial(Mamba, d_state=4)
    return perturbed(
        RCPSStack(vocab_size=12, d_model=D, n_layers=n_layers, layer=layer, complement_ids=COMPLEMENT, **options)
    )


def model(head):
    return SequenceModel(backbone(), perturbed(head))


def bases(*shape):
    torch.manual_seed(1)
    return torch.randint(7, 12, shape)


def other_strand(ids_BL):
    return TABLE[ids_BL.flip(1)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("swap", [True, False])
def test_hidden_states_are_equivariant(swap, device):
    module, ids_BL = backbone(swap_strands=swap), bases(2, 19)
    on_cpu_BLC = module(ids_BL)[0]
    module.to(device)
    hidden_BLC = module(ids_BL.to(device))[0]
    assert hidden_BLC.shape == (2, 19, 2 * D)
    assert_same(hidden_BLC.cpu(), on_cpu_BLC, f"hidden states on {device}")
    other_BLC = module(other_strand(ids_BL).to(device))[0]
    assert_same(other_BLC, hidden_BLC.flip(1, 2), "hidden states of the other strand")
    assert (hidden_BLC - hidden_BLC.flip(1, 2)).abs().max() > 0.1  # and not trivially so


def test_logits_of_masked_symbols_are_equivariant():
    network = model(RCMaskedTokenHead(d_model=D, vocab_size=12, complement_ids=COMPLEMENT))
    ids_BL = bases(2, 19)
    logits_BLV = network(ids_BL)[0]
    assert_same(network(other_strand(ids_BL))[0], logits_BLV.flip(1)[..., COMPLEMENT], "logits of the other strand")
    assert network.head.weight is network.backbone.embedding.weight


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_classification_is_invariant_with_padding_too(pooling, device):
    network = model(RCClassificationHead(d_model=D, num_classes=3, pooling=pooling)).to(device)
    ids_BL, lengths_B = bases(3, 15), torch.tensor([15, 9, 4])
    flipped_BL = rc.reverse_complement_ids(ids_BL, TABLE, lengths_B=lengths_B)
    assert torch.equal(flipped_BL[1, :9], other_strand(ids_BL[1:2, :9])[0])
    assert torch.equal(flipped_BL[1, 9:], ids_BL[1, 9:])
    ids_BL, flipped_BL, lengths_B = ids_BL.to(device), flipped_BL.to(device), lengths_B.to(device)
    logits_BO = network(ids_BL, lengths_B=lengths_B)[0]
    assert_same(network(flipped_BL, lengths_B=lengths_B)[0], logits_BO, "logits of the other strand")
    for row, length in enumerate(lengths_B.tolist()):
        alone_BO = network(ids_BL[row : row + 1, :length])[0]
        assert_same(logits_BO[row : row + 1], alone_BO, f"row {row}, padded and alone")


def published_stack(module, ids_BL, fused):
    """The blocks as `modeling_rcps.py` runs them, two halves of the channels, in plain PyTorch."""

    def norm(x_BLD, weight_D):
        return F.rms_norm(x_BLD, (D,), weight_D, eps=1e-5)

    def flip(x_BLD):
        return x_BLD.flip(1, 2)

    table = module.embedding.weight
    first, second = table[ids_BL], flip(table[other_strand(ids_BL)])
    first_residual = second_residual = 0.0
    for block in module.layers:
        first_residual, second_residual = first + first_residual, second + second_residual
        if fused:
            normed = norm(second_residual, block.norm.weight), flip(norm(flip(first_residual), block.norm.weight))
            first_residual, second_residual = second_residual, first_residual
        else:
            normed = norm(first_residual, block.norm.weight), flip(norm(flip(second_residual), block.norm.weight))
        first, second = block.mixer(normed[0])[0], flip(block.mixer(flip(normed[1]))[0])
    weight_D = module.norm_f.weight
    return torch.cat(
        [norm(first + first_residual, weight_D), flip(norm(flip(second + second_residual), weight_D))], dim=-1
    )


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_swapped_strands_are_the_fused_norm_of_released_weights(n_layers):
    fused, plain = backbone(n_layers, swap_strands=True), backbone(n_layers, swap_strands=False)
    assert fused.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(fused.state_dict())
    ids_BL = bases(2, 17)
    expected = published_stack(fused, ids_BL, fused=True)
    assert_same(fused(ids_BL)[0], expected, "fused norm")
    assert_same(plain(ids_BL)[0], published_stack(fused, ids_BL, fused=False), "norm that is not fused")
    assert (plain(ids_BL)[0] - expected).abs().max() > 0.1 * expected.abs().max()  # same weights, another function


def test_a_layer_under_rcps_is_the_layer_on_each_strand():
    torch.manual_seed(0)
    layer = perturbed(rc.RCPS(2 * D, layer=partial(Mamba, d_state=4)))
    x_BLC = torch.randn(2, 11, 2 * D)
    y_BLC = layer(x_BLC)[0]
    assert layer.residual_projections == ("layer.out_proj",)
    assert_same(y_BLC[..., :D], layer.layer(x_BLC[..., :D])[0], "the strand as given")
    assert_same(y_BLC[..., D:], layer.layer(x_BLC[..., D:].flip(1, 2))[0].flip(1, 2), "the other strand")
    assert_same(layer(x_BLC.flip(1, 2))[0], y_BLC.flip(1, 2), "RC of the input")


def test_packing_reverses_every_sequence_in_its_own_place():
    check_packing(backbone(), bases(1, 23))
    torch.manual_seed(0)
    check_laws(perturbed(rc.RCPS(2 * D, layer=partial(Mamba, d_state=4))), torch.randn(2, 20, 2 * D))


def test_strands_split_join_and_swap():
    x_BLC = torch.randn(2, 5, 4)
    cu_seqlens = torch.tensor([0, 2, 5])
    for x, cu in ((x_BLC, None), (x_BLC[:1], cu_seqlens)):
        strands = rc.split_strands(x, cu)
        assert torch.equal(rc.join_strands(strands, cu), x)
        exchanged = torch.cat([x[..., 2:], x[..., :2]], dim=-1)
        assert torch.equal(rc.join_strands(rc.swap_strands(strands, cu), cu), exchanged)
    assert rc.both_strands(cu_seqlens).tolist() == [0, 2, 5, 7, 10]
    assert rc.reverse_positions(torch.arange(5)[None], cu_seqlens).tolist() == [[1, 0, 4, 3, 2]]


def test_embedding_of_the_other_strand_stands_beside_its_base():
    embedding = rc.RCPSEmbedding(16, D, COMPLEMENT)
    hidden_BLC = embedding(torch.tensor([[7, 8, 11]]))  # A C N
    assert torch.equal(hidden_BLC[0, :, :D], embedding.weight[[7, 8, 11]])
    assert torch.equal(hidden_BLC[0, :, D:].flip(-1), embedding.weight[[10, 9, 11]])  # T G N


def test_gradients_with_recomputed_blocks_are_the_same():
    ids_BL = bases(2, 9)
    grads = []
    for recompute in (False, True):
        module = backbone(checkpoint_blocks=recompute).requires_grad_(True)
        module(ids_BL)[0].square().sum().backward()
        grads.append([parameter.grad for parameter in module.parameters()])
    for one, two in zip(*grads, strict=True):
        assert_same(two, one, "gradient", tolerance=1e-5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"complement_ids\[1\] is 2, but complement_ids\[2\] is not 1"):
        rc.RCPSEmbedding(8, D, [0, 2, 3, 1])
    with pytest.raises(ValueError, match="pairs 12 ids, and the table has 8 rows"):
        rc.RCPSEmbedding(8, D, COMPLEMENT)
    with pytest.raises(ValueError, match=r"d_model=5: .* must be even"):
        rc.RCPS(5, layer=Mamba)
    with pytest.raises(ValueError, match="no state"):
        backbone()(bases(1, 4), torch.zeros(1, 2))
    from seqmodels.heads.classification import ClassificationHead

    with pytest.raises(ValueError, match=r"RCPSStack gives two strands and ClassificationHead reads one strand"):
        SequenceModel(backbone(), ClassificationHead(d_model=D, num_classes=2))
