"""Bytes that are alive at the same time while PyTorch runs, counted from the outside: storages made and freed.

Works on fake tensors, where nothing is allocated: the memory of a training step at a million positions is added up on
a laptop in a second. What an op allocates inside and frees again before it returns is not seen.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """While it is entered, follows every storage that an op makes.

    Attributes:
        live: bytes alive now.
        peak: the most that were alive at one time since it was entered (or since `peak` was set).
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, tuple[weakref.ref, int]] = {}

    def follow(self, *tensors: Tensor) -> None:
        """Counts tensors that were there before: parameters, inputs."""
        for tensor in tensors:
            self._see(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._see(value)
        return result

    def _see(self, tensor: Tensor) -> None:
        if tensor.layout != torch.strided:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        # The Python object of a storage lives as long as the storage itself, whoever holds it.
        self._known[key] = (weakref.ref(storage, lambda _: self._forget(key)), size)

    def _forget(self, key: int) -> None:
        _, size = self._known.pop(key)
        self.live -= size
