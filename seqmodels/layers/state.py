"""What a layer carries from one piece of a sequence to the next, and the few things one does with it.

A state is a tensor, or a (named) tuple of states, or None ("start from zero"; also what a layer without memory
returns inside a tuple is `()`). Dimension 0 of every tensor is the batch (or, with cu_seqlens, the sequence), so
rows can be taken, repeated and joined without knowing the layer. Recurrent values are fp32 whatever the
activations are.

A state type that is more than its tensors says so itself, and the functions below heed it wherever it is nested:

- `holds_activations = True`: its tensors are activations in their own dtype (a key-value cache), not recurrent values;
- `select_rows(rows)`, `concat_rows(states)`: its rows may differ in length, so taking and joining them needs thought;
- `empty_rows(count)`: rows that have read nothing are not zeros of the same shape;
- `reserve(positions)`: it grows with what it reads, and can make room beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

State: TypeAlias = Any  # Tensor | tuple[State, ...] | None; Python cannot say "recursively" in a way pyright follows


def map_state(function: Callable[[Tensor], Tensor], state: State) -> State:
    """The same structure with `function` applied to every tensor."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, tuple):
        return _like(state, [map_state(function, part) for part in state])
    raise TypeError(f"a state is a tensor, a tuple of states or None, not {type(state).__name__}")


def state_tensors(state: State) -> Iterator[Tensor]:
    """Every tensor of a state, in a fixed order."""
    if isinstance(state, Tensor):
        yield state
    elif state is not None:
        for part in state:
            yield from state_tensors(part)


def recurrent_tensors(state: State) -> Iterator[Tensor]:
    """The tensors of a state that hold recurrent values: all but those of types with `holds_activations`."""
    if isinstance(state, Tensor):
        yield state
    elif state is not None and not getattr(state, "holds_activations", False):
        for part in state:
            yield from recurrent_tensors(part)


def detach_state(state: State) -> State:
    """Cuts the gradient: what truncated back-propagation puts between two pieces."""
    return map_state(Tensor.detach, state)


def select_state(state: State, rows_K: Int[Tensor, " K"] | Sequence[int]) -> State:
    """Rows of a state, repeated or dropped at will: `select_state(s, [0] * 8)` continues one prompt eight ways."""

    def take(tensor: Tensor) -> Tensor:
        return tensor.index_select(0, torch.as_tensor(rows_K, device=tensor.device, dtype=torch.int64))

    if hasattr(state, "select_rows"):
        return state.select_rows(rows_K)
    if isinstance(state, tuple):
        return _like(state, [select_state(part, rows_K) for part in state])
    return map_state(take, state)


def concat_states(states: Sequence[State]) -> State:
    """Joins states along the batch; all must have the same structure."""
    first = states[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return torch.cat(list(states), dim=0)
    if hasattr(first, "concat_rows"):
        return first.concat_rows(states)
    return _like(first, [concat_states(parts) for parts in zip(*states, strict=True)])


def empty_rows(state: State, count: int) -> State:
    """A state of the same kind as `state` with `count` rows that have read nothing: what None stands for, as tensors.

    Zeros are the start of every recurrence; a state type for which they are not has `empty_rows(count)`.
    """
    if state is None:
        return None
    if isinstance(state, Tensor):
        return state.new_zeros(count, *state.shape[1:])
    if hasattr(state, "empty_rows"):
        return state.empty_rows(count)
    return _like(state, [empty_rows(part, count) for part in state])


def reserve_state(state: State, positions: int) -> State:
    """The same state with room to read `positions` more in place: fixed memory, which a CUDA graph of a step needs.

    States of constant size come back as they are; what grows (a key-value cache) is moved to a larger buffer.
    """
    if hasattr(state, "reserve"):
        return state.reserve(positions)
    if isinstance(state, tuple):
        return _like(state, [reserve_state(part, positions) for part in state])
    return state


def assign_state(old: State, new: State) -> None:
    """Copies `new` into the memory of `old`; what a layer already updated in place is left alone."""
    for target, source in zip(state_tensors(old), state_tensors(new), strict=True):
        if target.data_ptr() != source.data_ptr():
            target.copy_(source)


_in_place = False


@contextmanager
def updating_in_place() -> Iterator[None]:
    """Lets layers write the new state into the memory of the one they are given: for decoding loops that own it.

    A layer may ignore this (`assign_state` then copies); one that heeds it asks `may_update_in_place`. Without it a
    step of a large model spends as long on copying its state as on the step.
    """
    global _in_place
    before, _in_place = _in_place, True
    try:
        yield
    finally:
        _in_place = before


def may_update_in_place() -> bool:
    """Whether the caller owns the state and wants it overwritten."""
    return _in_place


def state_bytes(state: State) -> int:
    """Memory of a state in bytes: all that inference keeps of the past."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state_tensors(state))


def _like(template: tuple[Any, ...], parts: Sequence[Any]) -> tuple[Any, ...]:
    """A tuple of the template's type: NamedTuples are called with one argument a field, tuples with one iterable."""
    return type(template)(*parts) if hasattr(template, "_fields") else tuple(parts)
