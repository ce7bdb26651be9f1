"""Training steps without launch cost: forward pass, loss and backward pass of one batch shape as CUDA graphs.

A training step of a small model is a thousand kernels of microseconds each; launched one by one they wait for Python.
Captured once by `torch.cuda.make_graphed_callables`, they are launched together. The loss stays an ordinary tensor:
`loss.backward()`, gradient clipping and the optimizer go on as before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqmodels.data.record import Batch
from seqmodels.heads.base import LossSums
from seqmodels.model import SequenceModel

MOST_SHAPES = 4  # each keeps the memory of a whole step for itself
_TENSORS = ("input_ids_BL", "lengths_B", "target_ids_BL", "labels_B", "weights_BL")


class GraphedLoss:
    """`loss_sums` of a model, replayed: the first batch of a shape is captured, later ones are copied into its place.

    Args:
        model: on a GPU; its parameters must stay the same tensors from now on.
    """

    def __init__(self, model: SequenceModel) -> None:
        self._model = model
        # Gradients are accumulated on the stream of the capture, which autograd waits for; newer PyTorch warns of it.
        if silence := getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None):
            silence(False)
        self._captured: dict[tuple[tuple[str, torch.Size], ...], _Step] = {}

    def __call__(self, batch: Batch) -> LossSums:
        """Sums of losses, differentiable.

        Raises:
            ValueError: the model does something that a graph cannot hold, or batches come in more shapes than
                `MOST_SHAPES`.
        """
        tensors = {name: tensor for name in _TENSORS if (tensor := getattr(batch, name)) is not None}
        key = tuple((name, tensor.shape) for name, tensor in tensors.items())
        step = self._captured.get(key)
        if step is None:
            if len(self._captured) == MOST_SHAPES:
                raise ValueError(
                    f"trainer.cuda_graph=true holds {MOST_SHAPES} shapes of batches and met another, "
                    f"{' x '.join(map(str, batch.input_ids_BL.shape))}; make samples equally long or set it to false"
                )
            step = self._captured[key] = _capture(self._model, tensors)
        loss_sum, count, *sums = (out.clone() for out in step(*tensors.values()))  # the next replay writes over them
        return LossSums(loss_sum, count, dict(zip(step.metric_names, sums, strict=True)))


class _Step(nn.Module):
    """Tensors of a batch to sums of losses, as capturing wants it: tensors in, tensors out."""

    def __init__(self, model: SequenceModel, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.metric_names: tuple[str, ...] = ()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        batch = Batch(record_ids=(), **dict(zip(self.names, tensors, strict=True)))  # type: ignore[arg-type]
        logits, _ = self.model(batch.input_ids_BL, self.model.begin(batch.labels_B), lengths_B=batch.lengths_B)
        sums = self.model.head.loss(logits, batch)
        self.metric_names = tuple(sums.metric_sums)
        return (sums.loss_sum, sums.count, *sums.metric_sums.values())


def _capture(model: SequenceModel, tensors: dict[str, Tensor]) -> _Step:
    step = _Step(model, tuple(tensors)).train(model.training)
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # a cast kept from outside the graph would never be made again
    try:
        samples = tuple(tensor.clone() for tensor in tensors.values())
        return torch.cuda.make_graphed_callables(step, samples, allow_unused_input=True)  # type: ignore[return-value]
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(
            "trainer.cuda_graph=true: this model does something in training that a CUDA graph cannot hold "
            f"({str(error).splitlines()[0]}); set trainer.cuda_graph=false"
        ) from error
    finally:
        torch.set_autocast_cache_enabled(cached)
