"""The loss over the positions of all ranks: each rank has a share of the positions and a copy of the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wals_spark.inject.fit.softmax_loss import LossGradient, SoftmaxLoss

if TYPE_CHECKING:
    import torch

    from wals_spark.cluster.process_group import Group

_ROWS_AT_ONCE = 4096


class GroupLoss:
    """The sum over ranks of their `SoftmaxLoss`; every rank calls the same methods with the same D.

    Parameters
    ----------
    own : SoftmaxLoss
        Of this rank's positions.
    group : Group
    """

    def __init__(self, own: SoftmaxLoss, group: Group) -> None:
        self.own = own
        self.group = group

    def count(self) -> int:
        """n, positions of all ranks."""
        return int(self.group.all_reduce(np.array(self.own.count, np.int64)))

    def gram(self) -> np.ndarray:
        """sum_t x_t x_t^T over all positions, float64 (d + 1, d + 1)."""
        return self.group.all_reduce(self.own.gram())

    def evaluate(self, D: torch.Tensor) -> LossGradient:
        """L(D) and its gradient over all positions, the same on every rank."""
        return self.sum(self.own.evaluate(D))

    def sum(self, own: LossGradient) -> LossGradient:
        """The sum over ranks of what each has of its own positions."""
        if self.group.size == 1:
            return own
        loss = float(self.group.all_reduce(np.array(own.loss)))
        return LossGradient(loss, *(self.sum_rows(tensor) for tensor in own[1:]))

    def losses(self, D: torch.Tensor) -> np.ndarray:
        """-log p(y_t) of all positions, in the order of the ranks, nats, float64."""
        return gather_ragged(self.group, self.own.losses(D))

    def sum_rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """A sum over ranks, some rows at a time, so that no rank holds another's whole gradient."""
        import torch

        if self.group.size == 1:
            return tensor
        values = tensor.cpu().numpy().copy()
        for start in range(0, len(values), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            values[part] = self.group.all_reduce(values[part])
        return torch.from_numpy(values).to(tensor.device)


def gather_ragged(group: Group, values: np.ndarray) -> np.ndarray:
    """One-dimensional arrays of all ranks, of any lengths, one behind another."""
    lengths = [int(length) for length in group.all_gather(np.array(len(values), np.int64))]
    padded = np.zeros(max(lengths), values.dtype)
    padded[: len(values)] = values
    return np.concatenate([part[:n] for part, n in zip(group.all_gather(padded), lengths, strict=True)])
