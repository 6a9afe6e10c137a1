"""Least squares over a stream of samples: two Gram matrices, one to fit and one to evaluate."""

from __future__ import annotations

import torch
from torch import Tensor

RIDGES = (1e-10, 1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Shares of the mean diagonal of the Gram matrix; which one is decided on the samples that were held out."""


class NormalEquations:
    """min |R - Z D|^2 in float64, for g blocks of inputs and outputs that do not see each other.

    Of every four samples (images) one is held out: it is not fitted, and says which ridge is best and whether any
    helps. What the samples do not determine stays zero. Memory: two matrices (g, D, D), however many samples there are.

    Args:
        blocks: g.
        inputs: D of one block, without the constant.
        outputs: O of one block.
        constant: Z gets a column of ones.
        device: Where the matrices live.

    >>> z = torch.randn(40, 2, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> equations = NormalEquations(1, 3, 1, constant=True)
    >>> equations.add(z, 2 * z[..., :1] + 1)
    >>> weights, constant, after = equations.solve()
    >>> [round(float(w), 6) + 0.0 for w in weights.flatten()], round(float(constant), 6), after < 1e-9
    ([2.0, 0.0, 0.0], 1.0, True)
    """

    def __init__(
        self, blocks: int, inputs: int, outputs: int, *, constant: bool, device: torch.device | str = "cpu"
    ) -> None:
        size = inputs + constant
        options = {"dtype": torch.float64, "device": device}
        self._inputs, self._constant = inputs, constant
        self._gram = [torch.zeros(blocks, size, size, **options) for _ in range(2)]  # type: ignore[call-overload]
        self._cross = [torch.zeros(blocks, size, outputs, **options) for _ in range(2)]  # type: ignore[call-overload]
        self._square = [0.0, 0.0]
        self.samples = 0

    def add(self, z: Tensor, r: Tensor) -> None:
        """Count samples ``z`` (N, P, g, D) and ``r`` (N, P, g, O), each at P positions."""
        held_out = torch.arange(self.samples, self.samples + len(z), device=z.device) % 4 == 3
        self.samples += len(z)
        for part, chosen in enumerate((~held_out, held_out)):
            zs, rs = (t[chosen].flatten(0, 1).to(self._gram[0].device).double().transpose(0, 1) for t in (z, r))
            if self._constant:
                zs = torch.cat([zs, zs.new_ones(*zs.shape[:2], 1)], 2)
            self._gram[part] += zs.transpose(1, 2) @ zs
            self._cross[part] += zs.transpose(1, 2) @ rs
            self._square[part] += float(rs.square().sum())

    @property
    def before(self) -> float:
        """Sum of the squares of R that were held out: the error of D = 0."""
        return self._square[1]

    def solve(self) -> tuple[Tensor, Tensor | None, float]:
        """The weights (g, D, O), the constant (g, O) where there is one, and the held-out error with them.

        The weights are zero where none is better than those.
        """
        best = torch.zeros_like(self._cross[0])
        least = self._square[1]
        diagonal = self._gram[0].diagonal(dim1=1, dim2=2)
        mean = (
            diagonal[:, : self._inputs].mean(1, keepdim=True) if self._inputs else diagonal.new_zeros(len(diagonal), 1)
        )
        penalized = torch.ones(diagonal.shape[1], dtype=torch.float64, device=diagonal.device)
        penalized[self._inputs :] = 0
        # Rounding alone can make a singular matrix indefinite; the constant must not be the one to pay for it.
        floor = 1e-14 * diagonal.sum(1, keepdim=True) + torch.finfo(torch.float64).tiny
        for ridge in RIDGES if self._inputs else (0.0,):
            matrix = self._gram[0] + torch.diag_embed(ridge * mean * penalized + floor)
            factor, failed = torch.linalg.cholesky_ex(matrix)
            if failed.any():
                continue
            found = torch.cholesky_solve(self._cross[0], factor)
            error = self._error(found)
            if error < least:
                best, least = found, error
        return best[:, : self._inputs], best[:, self._inputs] if self._constant else None, least

    def _error(self, d: Tensor) -> float:
        """Held-out |R - Z D|^2."""
        error = self._square[1] - 2 * (self._cross[1] * d).sum() + (d * (self._gram[1] @ d)).sum()
        return max(0.0, float(error))
