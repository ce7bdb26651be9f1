"""A discretised mixture of logistics over ordered levels: the head for 12- to 16-bit sound.

hidden_BLD -> K weights, means and scales a position, instead of V logits: 30 numbers instead of 65,536.

Ids 0..V-1 stand for points x = 2 id/(V-1) - 1, each the middle of a bin of half-width h = 1/(V-1); the first and the
last bin reach to infinity. With F the logistic CDF of a component (mean m, scale s), PixelCNN++ (Salimans et al. 2017,
arXiv:1701.05517, eq. 2) gives

    p(id) = sum_k w_k [ F((x + h - m_k)/s_k) - F((x - h - m_k)/s_k) ]

which adds up to 1 over the V ids exactly. We take the difference as F(a) - F(b) = F(a) F(-b) (1 - e^(b-a)), whose
logarithm is exact in every regime (far tails, wide and narrow components), where the published code changes between
approximations. All of it is fp32 even under autocast: 16-bit levels do not fit into bf16.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seqmodels.backbones.stack import EMBEDDING_STD
from seqmodels.data.record import IGNORE_INDEX, Batch
from seqmodels.heads.base import Head, LossSums

LOSS_CHUNK_POSITIONS = 2**18  # positions whose K-fold intermediate values exist at one time
_FIRST_LOG_SCALE = -3.0  # sound is quiet: 0.05 of full scale
_NARROWEST_BINS = 0.1  # of a component's scale, in half-widths of a bin: narrower changes nothing that can be seen


class MixtureOfLogisticsHead(Head):
    """K logistics over V ordered levels.

    Its outputs are 3 K numbers a position: log-weights (not normalised), means on [-1, 1], and what softplus makes
    log-scales of. Generation asks for `vocabulary_logits`, so temperature, top_k and top_p mean what they mean
    for every next-token head: they act on the probabilities of the V levels.

    Args:
        d_model: width of the hidden states.
        vocab_size: V, the number of levels, at least 2. Ids must be in the order of what they stand for, equally far
            apart: a linear tokenizer's (a mu-law tokenizer's on its own scale).
        components: K, at least 1.

    Raises:
        ValueError: a number out of range.
    """

    published_name: ClassVar[str] = "mixture_head"
    objective: ClassVar[str] = "next_token"
    metrics: ClassVar[tuple[str, ...]] = ("level_error",)

    def __init__(self, *, d_model: int, vocab_size: int, components: int = 10):
        super().__init__()
        if vocab_size < 2 or components < 1:
            raise ValueError(
                f"vocab_size={vocab_size}, components={components}: at least 2 levels and 1 component are needed"
            )
        self.vocab_size, self.components = vocab_size, components
        self.weight = nn.Parameter(torch.empty(3 * components, d_model))
        self.bias = nn.Parameter(torch.empty(3 * components))
        self._floor = math.log(_NARROWEST_BINS / (vocab_size - 1))
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """All components equally heavy, side by side around silence."""
        nn.init.normal_(self.weight, std=EMBEDDING_STD)
        weights_K, means_K, scales_K = self.bias.chunk(3)
        weights_K.zero_()
        means_K.copy_(torch.linspace(-0.1, 0.1, self.components) if self.components > 1 else torch.zeros(1))
        above = max(_FIRST_LOG_SCALE - self._floor, 0.5)
        scales_K.fill_(math.log(math.expm1(above)))  # softplus gives `above`

    def forward(
        self, hidden_BLD: Float[Tensor, "B L D"], lengths_B: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B L P"]:
        """The P = 3 K parameters of the mixture at every position, fp32; padding is ignored by the loss, not here."""
        with torch.autocast(hidden_BLD.device.type, enabled=False):
            return F.linear(hidden_BLD.float(), self.weight.float(), self.bias.float())

    def log_prob(self, outputs_TP: Float[Tensor, "T P"], ids_T: Int[Tensor, " T"]) -> Float[Tensor, " T"]:
        """log p of each id, nats; ids outside 0..V-1 count as the nearest."""
        log_weight_TK, mean_TK, log_scale_TK = self._mixture(outputs_TP)
        id_T1 = ids_T[:, None].float()
        return torch.logsumexp(log_weight_TK + self._log_mass(id_T1, mean_TK, log_scale_TK), dim=-1)

    def vocabulary_logits(self, outputs: Float[Tensor, "*B P"]) -> Float[Tensor, "*B V"]:
        """log p of every level, which adds up to 1: what generation draws from."""
        log_weights, means, log_scales = self._mixture(outputs)
        ids_V = torch.arange(self.vocab_size, device=outputs.device, dtype=torch.float32)
        total = None
        for k in range(self.components):  # one at a time: K times V values of every row would be much memory
            one = (means[..., k, None], log_scales[..., k, None])
            log_p = log_weights[..., k, None] + self._log_mass(ids_V, *one)
            total = log_p if total is None else torch.logaddexp(total, log_p)
        assert total is not None
        return total

    def loss(self, logits: Float[Tensor, "B L P"], batch: Batch) -> LossSums:
        """-log p in nats over targets that are not `IGNORE_INDEX`, times `weights_BL` if given.

        The metric "level_error" is the distance of the mixture's mean from the target, in levels.

        Raises:
            ValueError: the batch has no targets.
        """
        if batch.target_ids_BL is None:
            raise ValueError(
                f"a next-token head needs target_ids_BL, which this batch lacks (records {batch.record_ids[:3]}); "
                "use a collate for language modelling, or a classification head for labeled data"
            )
        targets_T = batch.target_ids_BL.flatten()
        weights_T = (targets_T != IGNORE_INDEX).float()
        if batch.weights_BL is not None:
            weights_T = weights_T * batch.weights_BL.flatten().float()
        pieces = [tensor.split(LOSS_CHUNK_POSITIONS) for tensor in (logits.flatten(0, 1), targets_T, weights_T)]
        several = len(targets_T) > LOSS_CHUNK_POSITIONS and torch.is_grad_enabled()
        sums = [
            checkpoint(self._sums, *piece, use_reentrant=False, preserve_rng_state=False) if several
            else self._sums(*piece) for piece in zip(*pieces, strict=True)
        ]  # fmt: skip
        loss_sum, error = (torch.stack(column).sum() for column in zip(*sums))  # type: ignore[arg-type]
        return LossSums(loss_sum, weights_T.sum(), {"level_error": error.detach()})

    def _sums(self, outputs_TP: Tensor, targets_T: Tensor, weights_T: Tensor) -> tuple[Tensor, Tensor]:
        ids_T = targets_T.clamp(min=0)  # ignored ones have weight 0
        log_weight_TK, mean_TK, _ = (part.detach() for part in self._mixture(outputs_TP))
        mean_T = (log_weight_TK.exp() * mean_TK.clamp(-1, 1)).sum(dim=-1)
        error_T = ((mean_T + 1) / 2 * (self.vocab_size - 1) - ids_T).abs()
        return -(self.log_prob(outputs_TP, ids_T) * weights_T).sum(), (error_T * weights_T).sum()

    def _mixture(self, outputs: Float[Tensor, "*B P"]) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights that add up to 1, means, log-scales: (..., K) each."""
        log_weights, means, scales = outputs.float().chunk(3, dim=-1)
        return torch.log_softmax(log_weights, dim=-1), means, self._floor + F.softplus(scales)

    def _log_mass(self, ids: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
        """log [F((x + h - m)/s) - F((x - h - m)/s)] of ids (as fp32), all broadcast against each other."""
        top = self.vocab_size - 1
        half = 1 / top
        inverse = torch.exp(-log_scales)
        centred = 2 * ids / top - 1 - means
        below_upper = F.logsigmoid((centred + half) * inverse)  # log F(a)
        above_lower = F.logsigmoid((half - centred) * inverse)  # log F(-b)
        between = torch.log(-torch.expm1(-2 * half * inverse))  # log(1 - e^(b-a))
        last, first = ids >= top, ids <= 0
        inside = torch.where(last, above_lower, below_upper + above_lower + between)
        return torch.where(first, below_upper, inside)
