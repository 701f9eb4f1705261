"""Peak memory where no allocator keeps statistics: count the storages that operators make and that die again.

PyTorch's CPU allocator reports no peak. `count_allocations` sees every operator that runs inside it, forward and
backward (the backward of CPU tensors runs in the calling thread), notes each new storage, and is told by a weak
reference when it is freed.

What it cannot see: scratch memory that lives and dies inside one operator (a convolution's packed weights, the rows
that a fused attention keeps), memory of other threads and of code outside PyTorch, and the allocator's own rounding.
So it is a lower bound on what the process needs, and the right number to compare two ways of writing the same layer.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

METHOD = "counted storages (scratch memory inside an operator is not seen)"


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)


@dataclass
class _Entry:
    watcher: weakref.ref[torch.UntypedStorage]
    nbytes: int  # 0 for a storage that was there before counting began


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hears of every operator and passes its tensors on."""

    def __init__(self, note: Callable[[Tensor, bool], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tell = note

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in (*_tensors(args), *_tensors(kwargs)):
            self._tell(tensor, False)
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            self._tell(tensor, True)
        return result


class count_allocations:
    """Count the bytes of storages made inside the `with` block.

    Attributes:
        live: bytes made inside and not freed yet.
        peak: the most that `live` has been.

    Both can be read inside the block and after it; what is freed later still lowers `live`, never `peak`.
    Storages of the meta device count as nothing; those of any other device count alike.
    """

    def __init__(self) -> None:
        self.live = 0
        self.peak = 0
        self._entries: dict[int, _Entry] = {}
        self._mode = _Counter(self._note)

    def __enter__(self) -> count_allocations:
        self._mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: object) -> None:
        self._mode.__exit__(*exception)  # type: ignore[no-untyped-call]

    def reset_peak(self) -> None:
        """Start the peak again from what is alive now."""
        self.peak = self.live

    def _note(self, tensor: Tensor, new: bool) -> None:
        if tensor.layout != torch.strided or tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        entry = self._entries.get(key)
        nbytes = storage.nbytes()
        if entry is None:
            watcher = weakref.ref(storage, partial(self._forget, key))
            self._entries[key] = _Entry(watcher, nbytes if new else 0)
            self._add(nbytes if new else 0)
        elif entry.nbytes and entry.nbytes != nbytes:  # an out= or resize_ made it larger or smaller
            self._add(nbytes - entry.nbytes)
            entry.nbytes = nbytes

    def _add(self, nbytes: int) -> None:
        self.live += nbytes
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int, watcher: weakref.ref[torch.UntypedStorage]) -> None:
        entry = self._entries.get(key)
        if entry is not None and entry.watcher is watcher:  # an address can be given out again before this is called
            del self._entries[key]
            self.live -= entry.nbytes
