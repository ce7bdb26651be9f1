"""Log-likelihood: the same in one pass, in chunks, piece by piece, and whatever is in the batch."""

from __future__ import annotations

import pytest
import torch

from seqmodels.inference import token_log_likelihood


def test_is_log_softmax_at_the_target(small_model):
    model, ids_BL = small_model(), torch.randint(0, 7, (2, 19))
    inputs_BL = torch.cat([torch.full((2, 1), 6), ids_BL[:, :-1]], dim=1)
    expected = model(inputs_BL)[0].log_softmax(-1).gather(-1, ids_BL[..., None])[..., 0].detach()
    actual, _ = token_log_likelihood(model, ids_BL, start_id=6)
    assert actual.dtype is torch.float32
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk_len", [1, 7, 18, 19, 100])
def test_chunks_equal_one_pass(small_model, chunk_len):
    model, ids_BL = small_model(), torch.randint(0, 7, (2, 19))
    whole, final = token_log_likelihood(model, ids_BL, start_id=0)
    chunked, chunked_final = token_log_likelihood(model, ids_BL, start_id=0, chunk_len=chunk_len)
    torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(chunked_final[1].ssm, final[1].ssm, rtol=1e-4, atol=1e-5)


def test_pieces_from_a_carried_state_equal_the_whole(small_model):
    model, ids_BL = small_model(), torch.randint(0, 7, (3, 30))
    whole, _ = token_log_likelihood(model, ids_BL, start_id=0)
    first, state = token_log_likelihood(model, ids_BL[:, :11], start_id=0)
    second, _ = token_log_likelihood(model, ids_BL[:, 11:], start_id=ids_BL[:, 10], state=state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=1e-4, atol=1e-5)


def test_rows_and_padding_do_not_meet(small_model):
    model, ids_BL = small_model(), torch.randint(0, 7, (2, 15))
    both, _ = token_log_likelihood(model, ids_BL, start_id=0, lengths_B=torch.tensor([9, 15]))
    alone, _ = token_log_likelihood(model, ids_BL[:1, :9], start_id=0)
    torch.testing.assert_close(both[:1, :9], alone, rtol=1e-4, atol=1e-5)
    assert not both[0, 9:].any()
    assert (both[1] < 0).all()


def test_reads_any_integer_ids(small_model):
    model, ids_BL = small_model(), torch.randint(0, 7, (1, 8))
    expected, _ = token_log_likelihood(model, ids_BL, start_id=0)
    assert torch.equal(token_log_likelihood(model, ids_BL.to(torch.uint8), start_id=0)[0], expected)


def test_probabilities_of_all_continuations_sum_to_one(small_model):
    model = small_model(vocab_size=3)
    every_BL = torch.cartesian_prod(*[torch.arange(3)] * 4)
    log_p_BL, _ = token_log_likelihood(model, every_BL, start_id=1)
    assert log_p_BL.double().sum(1).exp().sum().item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("ids", "arguments", "message"),
    [
        (torch.zeros(1, 0).long(), {}, r"\(1, 0\)"),
        (torch.zeros(1, 5).long(), {"chunk_len": 0}, "chunk_len=0"),
    ],
)
def test_refuses_bad_requests(small_model, ids, arguments, message):
    with pytest.raises(ValueError, match=message):
        token_log_likelihood(small_model(), ids, start_id=0, **arguments)
