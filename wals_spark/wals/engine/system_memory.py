"""The memory of this machine and of this process, and the part of it that a rank may use."""

from __future__ import annotations

import resource
import socket

from wals_spark.cluster.process_group import Group


def memory_per_rank(group: Group, device: str) -> int:
    """Bytes that every rank may use: the least over the ranks of what a machine has, divided by its ranks.

    On "cuda" a rank may use no more than what is free on its GPU. The number is the same on every rank.
    """
    hosts = group.all_gather_object(socket.gethostname())
    memory = machine_memory() // hosts.count(hosts[group.rank])
    if device == "cuda":
        import torch

        memory = min(memory, torch.cuda.mem_get_info()[0])
    return min(group.all_gather_object(memory))


def machine_memory() -> int:
    """Bytes of this machine's memory that are available, or of its control group's limit where that is less."""
    available = _meminfo("MemAvailable")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path, encoding="ascii") as stream:
                text = stream.read().strip()
        except OSError:
            continue
        if text.isdigit():
            available = min(available, int(text))
    return available


def _meminfo(name: str) -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            line = next(line for line in stream if line.startswith(name + ":"))
    except (OSError, StopIteration):
        # No such file on macOS: nothing is known, so nothing is refused.
        return 1 << 62
    return int(line.split()[1]) * 1024


def peak_memory() -> int:
    """Largest resident set of this process so far, in bytes."""
    try:
        with open("/proc/self/status", encoding="ascii") as stream:
            return 1024 * int(next(line for line in stream if line.startswith("VmHWM:")).split()[1])
    except (OSError, StopIteration):
        # Not Linux. There ru_maxrss would count what the process was forked from.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
