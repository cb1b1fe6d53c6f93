"""Where a prefill waits for its device: the one place at which the host looks at a device's tensors.

The host works out which token is what: frames, scenes, budgets, segments. The device computes on features. Each look at
a device's tensors stops its queue, so everything that is wanted at a time is copied at once, into tensors that live in
the host's memory from then on; reading those as arrays waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]


def here(x: Tensor) -> bool:
    """Whether a tensor's values lie in the host's memory, so that a look at them waits for nothing."""
    return x.device.type == "cpu"


@contextmanager
def made_here() -> Iterator[None]:
    """Tensors that are made without a device lie in the host's memory, whatever ``torch.set_default_device`` says."""
    if torch.get_default_device().type == "cpu":
        yield
        return
    with torch.device("cpu"):
        yield


def fetch(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies in the host's memory; the host waits once for each device that tensors are on."""
    copies = {at: x.clone() for at, x in enumerate(tensors) if here(x)}
    for device in {x.device for x in tensors if not here(x)}:
        wanted = [at for at, x in enumerate(tensors) if x.device == device]
        copies.update(zip(wanted, _transfer([tensors[at] for at in wanted]), strict=True))
    return [copies[at] for at in range(len(tensors))]


def _transfer(tensors: Sequence[Tensor]) -> list[Tensor]:
    """A device's tensors, copied as one row of bytes."""
    parts = [x.detach().contiguous().flatten().view(torch.uint8) for x in tensors]
    raw = torch.split(torch.cat(parts).cpu(), [len(part) for part in parts])
    return [part.clone().view(x.dtype).view(x.shape) for x, part in zip(tensors, raw, strict=True)]


def read(*tensors: Tensor | None) -> list[Any]:
    """Values of tensors as arrays, which must not be written to; None stays None.

    What does not lie in the host's memory is fetched, all of it at once.
    """
    far = [x for x in tensors if x is not None and not here(x)]
    fetched = iter(fetch(far))
    return [None if x is None else (x if here(x) else next(fetched)).detach().numpy() for x in tensors]


def array(x: Tensor) -> Array:
    """Values of one tensor; see :func:`read`."""
    values: Array = read(x)[0]
    return values


def later(x: Tensor) -> Callable[[], Tensor]:
    """A copy in the host's memory, for which nobody waits before it is asked for."""
    if x.device.type != "cuda":
        return x.cpu
    copy, done = x.to("cpu", non_blocking=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()

    def look() -> Tensor:
        done.synchronize()
        return copy

    return look


def send(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, which nobody waits for if it is the host's; the tensor itself if it is there."""
    if x.device == device:
        return x
    if device.type == "cuda" and here(x):
        x = x.pin_memory()  # otherwise the copy would wait for the queue
    return x.to(device, non_blocking=True)


def give(values: Array, device: torch.device) -> Tensor:
    """An array as a tensor on a device, as :func:`send` puts it there; on the host it shares the array's memory."""
    return send(torch.from_numpy(np.ascontiguousarray(values)), device)
