"""The ranks of a training and what they exchange: one process, or several over torch.distributed.

Arrays go in and come out as NumPy; between GPUs they travel over NCCL. Imports no pyspark.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np

from wals_spark.errors import TransientError

logger = logging.getLogger(__name__)


T = TypeVar("T")

LARGEST_MESSAGE = 1 << 28
"""Bytes that a rank hands to one collective call; longer arrays go in several, whatever counts a library can take."""


class Group(ABC):
    """All ranks of a training; every rank calls the same methods in the same order."""

    rank: int
    size: int

    @abstractmethod
    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        """The arrays of all ranks, of one shape and dtype, in the order of the ranks."""

    @abstractmethod
    def gather_text(self, text: str) -> list[str]:
        """The texts of all ranks."""

    @abstractmethod
    def exchange(self, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Send ``parts[r]`` to rank r and return what every rank sent here.

        All parts of all ranks have one dtype and, but for their first axis, one shape.
        """

    def sum(self, array: np.ndarray) -> np.ndarray:
        """The sum over the ranks, added in the order of the ranks: the same bits everywhere."""
        total = np.zeros_like(array)
        for part in self.gather(array):
            total += part
        return total

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        return max(int(part[0]) for part in self.gather(np.array([number], np.int64)))


class LocalGroup(Group):
    """A single rank: nothing to exchange, torch not needed."""

    rank, size = 0, 1

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        return [array]

    def gather_text(self, text: str) -> list[str]:
        return [text]

    def exchange(self, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        return list(parts)


class TorchGroup(Group):
    """Ranks over an initialised torch.distributed process group.

    Parameters
    ----------
    rank, size : int
    device : str
        Where the messages lie while they travel: "cpu" for gloo, "cuda:0" and the like for NCCL.
    """

    def __init__(self, rank: int, size: int, device: str = "cpu") -> None:
        self.rank, self.size, self.device = rank, size, device

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        import torch
        import torch.distributed as dist

        sent = _bytes_of(array)
        parts = [np.empty(len(sent), np.uint8) for _ in range(self.size)]
        for start in range(0, len(sent), LARGEST_MESSAGE):
            message = torch.from_numpy(sent[start : start + LARGEST_MESSAGE]).to(self.device)
            targets = [torch.from_numpy(part[start : start + LARGEST_MESSAGE]) for part in parts]
            # On a CPU these are the same tensors: what arrives is not copied again.
            received = [target.to(self.device) for target in targets]
            with _peers_may_vanish(self):
                dist.all_gather(received, message)
            for target, piece in zip(targets, received, strict=True):
                if piece is not target:
                    target.copy_(piece)
        return [part.view(array.dtype).reshape(array.shape) for part in parts]

    def gather_text(self, text: str) -> list[str]:
        content = np.frombuffer(text.encode(), np.uint8)
        padded = np.zeros(self.largest(len(content)), np.uint8)
        padded[: len(content)] = content
        return [part.tobytes().rstrip(b"\0").decode() for part in self.gather(padded)]

    def exchange(self, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        import torch
        import torch.distributed as dist

        sent = [_bytes_of(part) for part in parts]
        sizes = np.stack(self.gather(np.array([len(part) for part in sent], np.int64)))  # (from, to)
        incoming = [np.empty(count, np.uint8) for count in sizes[:, self.rank]]
        step = max(1, LARGEST_MESSAGE // self.size)
        for start in range(0, int(sizes.max()), step):
            out, into = ([part[start : start + step] for part in arrays] for arrays in (sent, incoming))
            message = torch.from_numpy(np.concatenate(out)).to(self.device)
            received = torch.empty(sum(map(len, into)), dtype=torch.uint8, device=self.device)
            with _peers_may_vanish(self):
                dist.all_to_all_single(received, message, [*map(len, into)], [*map(len, out)])
            for part, piece in zip(into, received.split([*map(len, into)]), strict=True):
                part[:] = piece.cpu().numpy()
        return [part.view(parts[0].dtype).reshape(-1, *parts[0].shape[1:]) for part in incoming]


def _bytes_of(array: np.ndarray) -> np.ndarray:
    """The array's memory as uint8, so that a collective need not know the dtype."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint8) if flat.flags.writeable else flat.copy().view(np.uint8)


@contextmanager
def _peers_may_vanish(group: Group) -> Iterator[None]:
    """A broken connection or a timeout says nothing of its cause: another rank's failure is the one to read."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLostError(
            f"rank {group.rank} of {group.size} on {socket.gethostname()} lost the others: {error}"
        ) from error


class PeerLostError(TransientError):
    """The consequence of another rank's end; never the first cause."""


@contextmanager
def process_group(
    rank: int,
    size: int,
    share_text: Callable[[str], Sequence[str]],
    *,
    timeout_s: float,
    cuda_device: int | None = None,
) -> Iterator[Group]:
    """Join the ranks into a group, and leave it in every case.

    Rank 0 listens on a port that the system chooses and keeps it; the address goes round by `share_text`.

    Parameters
    ----------
    rank, size : int
    share_text : callable
        Collective over the ranks: text of this rank -> texts of all, for example Spark's ``allGather``.
    timeout_s : float
        Longest wait for the others.
    cuda_device : int, optional
        The GPU of this rank; None = CPU over gloo.
    """
    if size == 1:
        share_text("")
        yield LocalGroup()
        return
    import torch.distributed as dist

    # A library may leave SIGHUP ignored in this process; a killed worker must not linger.
    _default_hangup()
    host = socket.gethostname()
    hosts = share_text(host)
    local = len(set(hosts)) == 1
    address = "127.0.0.1" if local else _address()
    if local:
        # The name of this machine need not resolve; the loopback interface always does.
        os.environ["GLOO_SOCKET_IFNAME"] = _loopback()
    timeout = timedelta(seconds=timeout_s)
    store: Any = None
    if rank == 0:
        store = dist.TCPStore(address, 0, size, is_master=True, timeout=timeout, wait_for_workers=False)
        shared = share_text(f"{address}:{store.port}")
    else:
        shared = share_text("")
        master, _, port = shared[0].rpartition(":")
        store = dist.TCPStore(master, int(port), size, is_master=False, timeout=timeout, wait_for_workers=False)
    backend = "gloo" if cuda_device is None else "cpu:gloo,cuda:nccl"
    group = TorchGroup(rank, size, "cpu" if cuda_device is None else f"cuda:{cuda_device}")
    with _peers_may_vanish(group):
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    try:
        yield group
    except BaseException:
        # Peers blocked in a collective see the closed connection instead of waiting for their timeout.
        _abort(cuda_device is not None)
        raise
    else:
        # Nobody leaves while another still reads from it.
        group.gather(np.zeros(1, np.int8))
        dist.destroy_process_group()
    finally:
        del store


def _abort(nccl: bool) -> None:
    import torch.distributed as dist

    if nccl:
        from torch.distributed import distributed_c10d

        distributed_c10d._abort_process_group()
    elif dist.is_initialized():
        dist.destroy_process_group()


def _default_hangup() -> None:
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    except ValueError:  # not the main thread: the handler is not ours to set
        logger.debug("SIGHUP left as it is: not the main thread")


def _address() -> str:
    """An address of this machine that the others can reach: the one its own name resolves to."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError as error:
        raise TransientError(
            f"the name {socket.gethostname()!r} of this machine does not resolve ({error}); add it to /etc/hosts or DNS"
        ) from error


def _loopback() -> str:
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name in ("lo", "lo0")), names[0])


def in_step(group: Group, items: Iterator[T], idle: T) -> Iterator[T]:
    """The items, then `idle` until the other ranks have none left either: for loops that talk to each other."""
    while True:
        item = next(items, None)
        if not group.largest(int(item is not None)):
            return
        yield idle if item is None else item
