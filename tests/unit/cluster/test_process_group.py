"""Messages between ranks, in one collective call or in many small ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fresh_process import FreshProcess

from wals_spark.cluster.process_group import LocalGroup, lockstep

PROGRAM = """
import sys
import numpy as np
import torch.distributed as dist
from wals_spark.cluster import process_group as module
from wals_spark.cluster.process_group import TorchGroup, lockstep
rank, size = int(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=rank, world_size=size)
group = TorchGroup(rank, size)
for largest in (1 << 28, 7):
    module.MAX_MESSAGE_BYTES = largest
    for dtype in (np.int8, np.int32, np.float64, np.bool_):
        mine = (np.arange(10).reshape(5, 2) + rank).astype(dtype)
        for other, part in enumerate(group.all_gather(mine)):
            assert np.array_equal(part, (np.arange(10).reshape(5, 2) + other).astype(dtype))
            assert part.dtype == dtype
    assert group.all_gather_object("x" * (rank + 1)) == ["x" * (other + 1) for other in range(size)]
    assert group.all_reduce(np.array([rank - 5]), "max") == size - 6
    assert group.all_reduce(np.array([rank - 5])) == size * (size - 1) // 2 - 5 * size
    # Rank r sends r + 3 t rows to rank t: none from 0 to 0, and never the same number twice.
    parts = [np.full((rank + 3 * to, 2), 10.0 * rank + to, np.float32) for to in range(size)]
    for sender, part in enumerate(group.all_to_all(parts)):
        assert part.shape == (sender + 3 * rank, 2)
        assert (part == 10 * sender + rank).all()
assert list(lockstep(group, iter(range(rank)), -1)) == [*range(rank), *[-1] * (size - 1 - rank)]
dist.barrier()
print("done")
"""


def test_messages_larger_than_a_call_may_take_arrive_whole(tmp_path: Path) -> None:
    ranks = [FreshProcess(PROGRAM, str(rank), "2", str(tmp_path / "store")) for rank in range(2)]
    ends = [rank.communicate(timeout=120) for rank in ranks]
    assert [out.strip() for out, _ in ends] == ["done", "done"], ends


def test_a_single_rank_talks_to_itself() -> None:
    group = LocalGroup()
    assert group.all_reduce(np.array(4), "max") == 4
    assert np.array_equal(group.all_to_all([np.arange(3)])[0], np.arange(3))
    assert list(lockstep(group, iter("ab"), "")) == ["a", "b"]
