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
# A balanced set that needs more repairs than this per structure has gone astray; its first group is kept instead.
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
    # Structures that partition the same groups are met at once; one of a kind is the rule.
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
                tips = candidates[groups] & (table != table[:, :1]).any(1)
                hard.append((where, groups[tips], table[tips]))
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
    cell = np.zeros(len(groups), dtype=np.int64)
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


def _repaired(structures: list[tuple[str, Ints, Table]], values: npt.NDArray[np.float64], set_of: Ints) -> list[str]:
    """Structures that overlap (ShuffleNet): start from the lowest group and mend what it tips, structure by structure.

    The earliest tipped structure is mended with the lowest group that occurs in its missing block and tips no earlier
    one, so every repair moves on along the network and ends with it. What cannot be mended stays.
    """
    vectors: dict[int, dict[int, npt.NDArray[np.int32]]] = {}
    for c, (_, groups, table) in enumerate(structures):
        for tipping, row in zip(groups.tolist(), table, strict=True):
            vectors.setdefault(tipping, {})[c] = row
    order = sorted(vectors, key=lambda g: (values[g], g))
    queues: dict[tuple[int, int], list[int]] = {}
    for g in order:
        c = min(vectors[g])
        low = vectors[g][c].min()
        for b in np.flatnonzero(vectors[g][c] > low):
            queues.setdefault((c, int(b)), []).append(g)
    heads = dict.fromkeys(queues, 0)
    used: set[int] = set()

    def lowest(key: tuple[int, int], inside: set[int]) -> int | None:
        queue = queues.get(key, [])
        i = heads.get(key, 0)
        while i < len(queue) and queue[i] in used:
            i += 1
        heads[key] = i
        while i < len(queue) and (queue[i] in used or queue[i] in inside):
            i += 1
        return queue[i] if i < len(queue) else None

    stuck: dict[int, int] = {}
    for g in order:
        if g in used:
            continue
        members, tipped = {g}, dict(vectors[g])
        blocked = -1
        while tipped:
            c = min(tipped)
            partner = lowest((c, int(tipped[c].argmin())), members)
            if partner is None or len(members) > MOST_REPAIRS * len(structures):
                blocked = c
                break
            members.add(partner)
            for d, vector in vectors[partner].items():
                total = tipped.get(d, 0) + vector
                if (total == total[0]).all():
                    tipped.pop(d, None)
                else:
                    tipped[d] = total
        group_list = sorted(members)
        if blocked >= 0:
            set_of[g] = -1
            used.add(g)
            stuck[blocked] = stuck.get(blocked, 0) + 1
        else:
            used |= members
            set_of[group_list] = g
    return [
        f"{count} channel groups stay: {structures[c][0]} has no partner left for them."
        for c, count in sorted(stuck.items())
    ]
