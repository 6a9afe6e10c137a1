"""Balanced sets: the smallest sets of channel groups that keep every grouped convolution, split and shuffle balanced.

A grouped convolution must lose equally many channels in each of its blocks, a ``chunk`` equally many in each piece.
They are built once, in ascending order of score, whatever the budget is, so that a smaller budget keeps a subset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from slim.channels import Balance, ChannelGraph

Ints = npt.NDArray[np.int64]
Table = npt.NDArray[np.int32]
# With more repairs than this per structure the first group of a balanced set is kept instead.
MOST_REPAIRS = 64


def balanced_sets(
    graph: ChannelGraph, candidates: npt.NDArray[np.bool_], values: npt.NDArray[np.float64]
) -> tuple[Ints, list[str]]:
    """Partition the candidates into balanced sets.

    Returns:
        The set of every group, (n_groups,) int64, -1 where it must stay; and a line per structure that keeps any.
    """
    set_of = np.where(candidates, np.arange(len(graph)), -1)
    tables = [_occurrences(balance) for balance in _distinct(graph.balance)]
    meets = np.zeros(len(graph), dtype=np.int64)
    # Structures that partition the same groups are balanced together; usually there is one of a kind.
    kinds: dict[bytes, list[tuple[str, Ints, Table]]] = {}
    for i, (where, groups, table) in enumerate(tables):
        meets[groups[(table != table[:, :1]).any(1)]] += 1
        partition = (table.sum(1) == 1).all()
        kinds.setdefault(groups.tobytes() if partition else str(i).encode(), []).append((where, groups, table))
    hard = []
    for kind in kinds.values():
        groups, table = kind[0][1], kind[0][2]
        inside = candidates[groups]
        if (table.sum(1) == 1).all() and (meets[groups[inside]] == len(kind)).all():
            _ranks(groups, [table for _, _, table in kind], inside, values, set_of)
        else:
            for where, groups, table in kind:
                unbalanced = candidates[groups] & (table != table[:, :1]).any(1)
                hard.append((where, groups[unbalanced], table[unbalanced]))
    return set_of, _repaired(hard, values, set_of) if hard else []


def _distinct(balances: list[Balance]) -> list[Balance]:
    seen: dict[tuple[bytes, ...], Balance] = {}
    for b in balances:
        seen.setdefault(tuple(np.asarray(block, np.int64).tobytes() for block in b.blocks), b)
    return list(seen.values())


def _occurrences(balance: Balance) -> tuple[str, Ints, Table]:
    """(where, groups (n,), how often each occurs in each block (n, blocks))."""
    every = np.concatenate([np.asarray(block, dtype=np.int64) for block in balance.blocks])
    groups = np.unique(every[every >= 0])
    table = np.zeros((len(groups), len(balance.blocks)), dtype=np.int32)
    for b, block in enumerate(balance.blocks):
        inside = np.asarray(block, dtype=np.int64)
        np.add.at(table[:, b], np.searchsorted(groups, inside[inside >= 0]), 1)
    return balance.where, groups, table


def _ranks(
    groups: Ints, tables: list[Table], inside: npt.NDArray[np.bool_], values: npt.NDArray[np.float64], set_of: Ints
) -> None:
    """Each group in one block of each structure: the r-th balanced set takes the next lowest of every block.

    With several structures over the same groups, a cell is what lies in the same block of each. Cells in proportion to
    their sizes are balanced in all of them; the smallest such balanced set is taken.
    """
    cell: Ints = np.zeros(len(groups), dtype=np.int64)
    for table in tables:
        cell = cell * table.shape[1] + table.argmax(1)
    cell = np.unique(cell, return_inverse=True)[1].reshape(-1)
    full = np.bincount(cell)
    share = full // np.gcd.reduce(full)
    set_of[groups[inside]] = -1
    groups, cell = groups[inside], cell[inside]
    order = np.lexsort((groups, values[groups], cell))
    ranked, cell = groups[order], cell[order]
    size = np.bincount(cell, minlength=len(full))
    rank = (np.arange(len(ranked)) - (np.cumsum(size) - size)[cell]) // share[cell]
    whole = rank < (size // share).min()
    # A balanced set is named by its first group of the first cell, which no other balanced set holds.
    name = ranked[: size[0] : share[0]]
    set_of[ranked[whole]] = name[rank[whole]]


Vectors = dict[int, dict[int, npt.NDArray[np.int32]]]
"""Per group and structure in which it is unbalanced: how often it occurs in each block."""


class _Partners:
    """Unused groups by (structure, block) in which they occur most, in ascending order of score."""

    def __init__(self, vectors: Vectors, order: list[int]) -> None:
        self.used: set[int] = set()
        self._queues: dict[tuple[int, int], list[int]] = {}
        for g in order:
            c = min(vectors[g])
            low = vectors[g][c].min()
            for b in np.flatnonzero(vectors[g][c] > low):
                self._queues.setdefault((c, int(b)), []).append(g)
        self._heads = dict.fromkeys(self._queues, 0)

    def lowest(self, key: tuple[int, int], exclude: set[int]) -> int | None:
        """The unused group of lowest score for (structure, block) that is not in ``exclude``."""
        queue = self._queues.get(key, [])
        i = self._heads.get(key, 0)
        while i < len(queue) and queue[i] in self.used:
            i += 1
        self._heads[key] = i
        while i < len(queue) and (queue[i] in self.used or queue[i] in exclude):
            i += 1
        return queue[i] if i < len(queue) else None


def _repaired(structures: list[tuple[str, Ints, Table]], values: npt.NDArray[np.float64], set_of: Ints) -> list[str]:
    """Structures that overlap (ShuffleNet): start from the group of lowest score and add partners until all balance.

    Structures are repaired in trace order: each time, the group of lowest score that occurs in the missing block of the
    first unbalanced structure, and unbalances no earlier one, is added. So the repair proceeds along the network and
    ends with it. Groups that cannot be balanced stay: ``set_of`` becomes -1.

    Returns:
        One line per structure that keeps groups for lack of partners.
    """
    vectors: Vectors = {}
    for c, (_, groups, table) in enumerate(structures):
        for group, row in zip(groups.tolist(), table, strict=True):
            vectors.setdefault(group, {})[c] = row
    order = sorted(vectors, key=lambda g: (values[g], g))
    partners = _Partners(vectors, order)
    stuck: dict[int, int] = {}
    for g in order:
        if g in partners.used:
            continue
        members, blocked = _balanced_members(g, vectors, partners, MOST_REPAIRS * len(structures))
        if blocked is None:
            partners.used |= members
            set_of[sorted(members)] = g
        else:
            partners.used.add(g)
            set_of[g] = -1
            stuck[blocked] = stuck.get(blocked, 0) + 1
    return [
        f"{count} channel groups stay: {structures[c][0]} has no partner left for them."
        for c, count in sorted(stuck.items())
    ]


def _balanced_members(g: int, vectors: Vectors, partners: _Partners, most: int) -> tuple[set[int], int | None]:
    """The smallest balanced set around ``g`` of about ``most`` groups at most, and the structure without a partner."""
    members, unbalanced = {g}, dict(vectors[g])
    while unbalanced:
        c = min(unbalanced)
        partner = partners.lowest((c, int(unbalanced[c].argmin())), members)
        if partner is None or len(members) > most:
            return members, c
        members.add(partner)
        for d, vector in vectors[partner].items():
            total = unbalanced.get(d, 0) + vector
            if (total == total[0]).all():
                unbalanced.pop(d, None)
            else:
                unbalanced[d] = total
    return members, None
