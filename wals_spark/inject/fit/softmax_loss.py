r"""The masked-LM loss as a function of rows that move, at hidden states that stay.

With s the scale of the bias feature, x_t = [h_t; s] and W0 = [E0, b0 / s], for rows W = W0 + D of which only the
movable ones differ from W0::

    L(D)     = sum_t log Z_t - w_{y_t} . x_t ,   Z_t = sum_movable exp(w_v . x_t) + sum_frozen exp(w0_v . x_t)
    dL/dD_v  = sum_t (p_tv - [y_t = v]) x_t      of a movable token v

The sum over frozen rows does not depend on D: it is computed once, so that an evaluation costs 4 n A (d + 1)
multiplications and additions, A being the number of movable rows, not of all V.

All arrays are torch tensors on one device, float32; sums over positions of losses are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from wals_spark.errors import InputError

if TYPE_CHECKING:
    import torch

    from wals_spark.mlm.hidden_states import MaskedStates

Visitor = Callable[[slice, "torch.Tensor"], None]

LOGITS_AT_ONCE = 1 << 24
"""Logits of a chunk of positions: 64 MiB."""


class OutputLayer(NamedTuple):
    """The decoder of a masked-LM head: logits are E h + b.

    Attributes
    ----------
    E : float32 array of shape (V, d)
    b : float32 array of shape (V,)
    """

    E: np.ndarray
    b: np.ndarray


class LossGradient(NamedTuple):
    """The loss of some positions and its derivatives by the movable rows.

    Attributes
    ----------
    loss : float
        L(D), nats, the sum over positions.
    gradient : float32 tensor of shape (A, d + 1)
    mass : float32 tensor of shape (A,)
        sum_t p_tv.
    squared_mass : float32 tensor of shape (A,)
        sum_t p_tv^2.
    """

    loss: float
    gradient: torch.Tensor
    mass: torch.Tensor
    squared_mass: torch.Tensor


class SoftmaxLoss:
    """L(D) at the positions of some states.

    Parameters
    ----------
    states : MaskedStates
        Of n positions.
    base : OutputLayer
        Of the checkpoint.
    movable : int64 array of shape (A,)
        Tokens whose rows may move, ascending.
    bias_scale : float
        s.
    device : torch.device or str
        Where the work is done.

    Raises
    ------
    InputError
        States that are not finite, of another width than the rows, or targets outside the vocabulary.
    """

    def __init__(
        self, states: MaskedStates, base: OutputLayer, movable: np.ndarray, bias_scale: float, device: str = "cpu"
    ) -> None:
        import torch

        _check_states(states, base)
        self.count = len(states)
        self.bias_scale = bias_scale
        self._hidden = torch.from_numpy(np.ascontiguousarray(states.hidden)).to(device)  # (n, d)
        index = np.full(len(base.E), -1, np.int64)
        index[movable] = np.arange(len(movable))
        self._row = torch.from_numpy(index[states.target]).to(device)  # (n,), -1 where the target's row is frozen
        self.W0 = _augmented(base, movable, bias_scale).to(device)  # (A, d + 1)
        frozen = np.setdiff1d(np.arange(len(base.E)), movable)
        target = torch.from_numpy(states.target.astype(np.int64)).to(device)
        self._frozen, self._fixed = self._at_frozen_rows(
            _augmented(base, frozen, bias_scale).to(device), target, frozen
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(A, d + 1), the shape of D."""
        return tuple(self.W0.shape)

    def gram(self) -> np.ndarray:
        """sum_t x_t x_t^T, float64 (d + 1, d + 1)."""
        import torch

        total = torch.zeros(self.shape[1], self.shape[1], dtype=torch.float64)
        for _, x in self._chunks(self.shape[1]):
            total += (x.T @ x).double().cpu()
        return total.numpy()

    def evaluate(self, D: torch.Tensor, visit: Visitor | None = None) -> LossGradient:
        """L(D) with its gradient; D is (A, d + 1).

        `visit` is called with (positions, p_tv of the movable rows there) for every chunk.
        """
        import torch

        W = self.W0 + D
        gradient = torch.zeros_like(W)
        mass, squared = torch.zeros_like(W[:, 0]), torch.zeros_like(W[:, 0])
        loss = 0.0
        for part, x in self._chunks(len(W)):
            p, log_z, right = self._probabilities(W, part, x)
            loss += float((log_z - right).sum(dtype=torch.float64))
            mass += p.sum(0)
            squared += (p * p).sum(0)
            if visit is not None:
                visit(part, p)
            gradient.addmm_(self._residual(p, part).T, x)
        return LossGradient(loss, gradient, mass, squared)

    def batch_gradient(self, D: torch.Tensor, positions: np.ndarray) -> torch.Tensor:
        """The gradient of the loss of some positions alone, float32 (A, d + 1)."""
        import torch

        W, part = self.W0 + D, torch.from_numpy(positions).to(D.device)
        x = self.features(part)
        return self._residual(self._probabilities(W, part, x)[0], part).T @ x

    def probabilities(self, D: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """x_t (c, d + 1) and p_tv of the movable rows (c, A) at D, a chunk of positions at a time."""
        W = self.W0 + D
        for part, x in self._chunks(len(W)):
            yield x, self._probabilities(W, part, x)[0]

    def features(self, part: slice | torch.Tensor) -> torch.Tensor:
        """x_t of some positions, float32 (c, d + 1)."""
        import torch

        h = self._hidden[part].float()
        return torch.cat([h, h.new_full((len(h), 1), self.bias_scale)], 1)

    def losses(self, D: torch.Tensor) -> np.ndarray:
        """-log p(y_t) of every position, nats, float64 (n,)."""
        W = self.W0 + D
        found = np.empty(self.count)
        for part, x in self._chunks(len(W)):
            _, log_z, right = self._probabilities(W, part, x, keep=False)
            found[part] = (log_z.double() - right.double()).cpu().numpy()
        return found

    def _residual(self, p: torch.Tensor, part: slice | torch.Tensor) -> torch.Tensor:
        """p_tv - [y_t = v] of some positions, in place of p (c, A)."""
        row = self._row[part]
        own = (row >= 0).nonzero()[:, 0]
        p[own, row[own]] -= 1
        return p

    def _probabilities(
        self, W: torch.Tensor, part: slice | torch.Tensor, x: torch.Tensor, keep: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """p_tv of movable rows (c, A), log Z_t (c,) and the target's logit (c,) of a chunk of positions."""
        import torch

        z = x @ W.T  # (c, A)
        row, frozen = self._row[part], self._frozen[part]
        right = self._fixed[part].clone()
        own = (row >= 0).nonzero()[:, 0]
        right[own] = z[own, row[own]]
        largest = torch.maximum(z.amax(1), frozen) if z.shape[1] else frozen
        total = z.sub_(largest[:, None]).exp_().sum(1) + torch.exp(frozen - largest)
        if keep:
            z.div_(total[:, None])
        return z, total.log() + largest, right

    def _at_frozen_rows(
        self, W: torch.Tensor, target: torch.Tensor, frozen: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log of the sum over frozen rows, -inf where there are none, and the logits of frozen targets; both (n,)."""
        import torch

        mass = torch.full((self.count,), -torch.inf, device=W.device)
        right = torch.zeros(self.count, device=W.device)
        place = np.full(max(int(target.max()) if len(target) else 0, int(frozen.max(initial=0))) + 1, -1, np.int64)
        place[frozen] = np.arange(len(frozen))
        column = torch.from_numpy(place).to(W.device)[target]
        for part, x in self._chunks(len(W)):
            z = x @ W.T
            if len(W):
                mass[part] = z.logsumexp(1)
            own = (column[part] >= 0).nonzero()[:, 0]
            right[part][own] = z[own, column[part][own]]
        return mass, right

    def _chunks(self, rows: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """x_t a chunk of positions at a time, float32 (c, d + 1)."""
        step = max(16, LOGITS_AT_ONCE // max(rows, 1))
        for start in range(0, self.count, step):
            part = slice(start, min(start + step, self.count))
            yield part, self.features(part)


def _augmented(base: OutputLayer, ids: np.ndarray, bias_scale: float) -> torch.Tensor:
    """[E0, b0 / s] of some tokens, float32 (m, d + 1)."""
    import torch

    b = (base.b[ids] / bias_scale).astype(np.float32)
    return torch.from_numpy(np.concatenate([base.E[ids].astype(np.float32), b[:, None]], 1))


def _check_states(states: MaskedStates, base: OutputLayer) -> None:
    if states.hidden.shape[1] != base.E.shape[1]:
        raise InputError(
            f"the states have {states.hidden.shape[1]} numbers, the checkpoint's rows {base.E.shape[1]}: they are of "
            "another model; run `wals-spark states --force`"
        )
    if len(states) and (states.target.min() < 0 or states.target.max() >= len(base.E)):
        raise InputError(
            f"the states have targets from {states.target.min()} to {states.target.max()}, the checkpoint has "
            f"{len(base.E)} rows: they are of another tokenizer; run `wals-spark states --force`"
        )
    for start in range(0, len(states), 65536):
        wrong = int((~np.isfinite(states.hidden[start : start + 65536])).sum())
        if wrong:
            raise InputError(
                f"{wrong} numbers among the states from position {start} on are not finite: run `wals-spark states "
                "--force`, and check the checkpoint's weights"
            )
