"""Process groups and their collectives: one process, or several over torch.distributed.

The names are MPI's: `all_gather`, `all_reduce`, `all_to_all`. Arrays go in and come out as NumPy; between GPUs they
travel over NCCL. Imports no pyspark.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, TypeVar

import numpy as np

from wals_spark.errors import TransientError

logger = logging.getLogger(__name__)


T = TypeVar("T")

MAX_MESSAGE_BYTES = 1 << 28
"""Bytes that a rank hands to one collective call; longer arrays go in several, whatever counts a library can take."""


class Group(ABC):
    """The ranks of a training; every rank calls the same methods in the same order.

    Attributes
    ----------
    rank, size : int
    """

    rank: int
    size: int

    @abstractmethod
    def all_gather(self, array: np.ndarray) -> list[np.ndarray]:
        """The arrays of all ranks, of one shape and dtype, in the order of the ranks."""

    @abstractmethod
    def all_gather_object(self, value: Any) -> list[Any]:
        """The values of all ranks, anything that JSON can hold, in the order of the ranks."""

    @abstractmethod
    def all_to_all(self, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Send ``parts[r]`` to rank r and return what every rank sent here.

        All parts of all ranks have one dtype and, but for their first axis, one shape.
        """

    def all_reduce(self, array: np.ndarray, operation: Literal["sum", "max"] = "sum") -> np.ndarray:
        """The elementwise sum or maximum over the ranks.

        A sum is added in the order of the ranks, starting from zero: the same bits on every rank.
        """
        parts = self.all_gather(array)
        if operation == "max":
            return np.max(parts, axis=0)
        total = np.zeros_like(array)
        for part in parts:
            total += part
        return total


class LocalGroup(Group):
    """A single rank: nothing to send, torch not needed."""

    rank, size = 0, 1

    def all_gather(self, array: np.ndarray) -> list[np.ndarray]:
        return [array]

    def all_gather_object(self, value: Any) -> list[Any]:
        return [value]

    def all_to_all(self, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
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

    def all_gather(self, array: np.ndarray) -> list[np.ndarray]:
        import torch
        import torch.distributed as dist

        sent = _bytes_of(array)
        parts = [np.empty(len(sent), np.uint8) for _ in range(self.size)]
        for start in range(0, len(sent), MAX_MESSAGE_BYTES):
            message = torch.from_numpy(sent[start : start + MAX_MESSAGE_BYTES]).to(self.device)
            targets = [torch.from_numpy(part[start : start + MAX_MESSAGE_BYTES]) for part in parts]
            # On a CPU these are the same tensors: what arrives is not copied again.
            received = [target.to(self.device) for target in targets]
            with _peers_may_vanish(self):
                dist.all_gather(received, message)
            for target, chunk in zip(targets, received, strict=True):
                if chunk is not target:
                    target.copy_(chunk)
        return [part.view(array.dtype).reshape(array.shape) for part in parts]

    def all_gather_object(self, value: Any) -> list[Any]:
        # As JSON: torch's own all_gather_object would unpickle what arrives.
        content = np.frombuffer(json.dumps(value).encode(), np.uint8)
        longest = int(self.all_reduce(np.array(len(content)), "max"))
        padded = np.full(longest, ord(" "), np.uint8)
        padded[: len(content)] = content
        return [json.loads(part.tobytes()) for part in self.all_gather(padded)]

    def all_to_all(self, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        import torch
        import torch.distributed as dist

        sent = [_bytes_of(part) for part in parts]
        sizes = np.stack(self.all_gather(np.array([len(part) for part in sent], np.int64)))  # (from, to)
        incoming = [np.empty(count, np.uint8) for count in sizes[:, self.rank]]
        step = max(1, MAX_MESSAGE_BYTES // self.size)
        for start in range(0, int(sizes.max()), step):
            out, into = ([part[start : start + step] for part in arrays] for arrays in (sent, incoming))
            message = torch.from_numpy(np.concatenate(out)).to(self.device)
            received = torch.empty(sum(map(len, into)), dtype=torch.uint8, device=self.device)
            with _peers_may_vanish(self):
                dist.all_to_all_single(received, message, [*map(len, into)], [*map(len, out)])
            for part, chunk in zip(into, received.split([*map(len, into)]), strict=True):
                part[:] = chunk.cpu().numpy()
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
    all_gather_text: Callable[[str], Sequence[str]],
    *,
    timeout_s: float,
    cuda_device: int | None = None,
) -> Iterator[Group]:
    """Join the ranks into a group, and leave it in every case.

    Rank 0 listens on a port that the system chooses and keeps it; `all_gather_text` hands its address round.

    Parameters
    ----------
    rank, size : int
    all_gather_text : callable
        Collective over the ranks: text of this rank -> texts of all, for example Spark's ``allGather``.
    timeout_s : float
        Longest wait for the others.
    cuda_device : int, optional
        The GPU of this rank; None = CPU over gloo.

    Yields
    ------
    Group
    """
    if size == 1:
        all_gather_text("")
        yield LocalGroup()
        return
    import torch.distributed as dist

    # A library may leave SIGHUP ignored in this process; a killed worker must not linger.
    _default_hangup()
    timeout = timedelta(seconds=timeout_s)
    store = _rendezvous(rank, size, all_gather_text, timeout)
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
        # A barrier: nobody leaves while another still reads from it.
        group.all_gather(np.zeros(1, np.int8))
        dist.destroy_process_group()
    finally:
        del store


def _rendezvous(rank: int, size: int, all_gather_text: Callable[[str], Sequence[str]], timeout: timedelta) -> Any:
    """The key-value store of the group: rank 0 serves it, the others connect to the address that it hands round."""
    import torch.distributed as dist

    hosts = all_gather_text(socket.gethostname())
    local = len(set(hosts)) == 1
    address = "127.0.0.1" if local else _address()
    if local:
        # The name of this machine need not resolve; the loopback interface always does.
        os.environ["GLOO_SOCKET_IFNAME"] = _loopback()
    if rank == 0:
        store = dist.TCPStore(address, 0, size, is_master=True, timeout=timeout, wait_for_workers=False)
        all_gather_text(f"{address}:{store.port}")
        return store
    master, _, port = all_gather_text("")[0].rpartition(":")
    return dist.TCPStore(master, int(port), size, is_master=False, timeout=timeout, wait_for_workers=False)


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


def lockstep(group: Group, items: Iterator[T], idle: T) -> Iterator[T]:
    """The items, then `idle` until the other ranks have none left either: for loops whose bodies are collective."""
    while True:
        item = next(items, None)
        if not group.all_reduce(np.array(item is not None, np.int8), "max"):
            return
        yield idle if item is None else item
