"""Correlation coefficients of many samples at once, where a sample takes each family so many times.

A sample is a row of weights, one per family: all ones for the data as they are, a zero for a deleted family.
`families` numbers the family of each point, from 0; F is their number. Every function returns one coefficient per
row, NaN where it is not defined: fewer than 3 points, or a constant side.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Integers = NDArray[np.intp]

MIN_POINTS = 3
BLOCK = 1 << 18  # numbers of an array of [rows, points] worked on at once, so that it stays in the cache
NOTHING = 1e-20  # a variance so small, of standardized values, is rounding


class Order(NamedTuple):
    """The points [n] in ascending order, where in it each distinct value starts, and which of these each has [n]."""

    points: Integers
    starts: Integers
    value: Integers


def pearson(x: Array, y: Array, families: Integers, weights: Array) -> Array:
    """Pearson's r.

    Args:
        x, y: [n] values.
        families: [n] the family of each.
        weights: [R, F] how often each sample takes each family.

    Returns:
        [R] coefficients.
    """
    return partial(x, y, np.empty((len(x), 0)), families, weights)


def partial(x: Array, y: Array, controls: Array, families: Integers, weights: Array) -> Array:
    """Pearson's r of what linear regression on the controls leaves of x and y, fitted anew in every sample.

    From the covariances S of x and y (1) and the controls (2): r of S_11 − S_12 S_22⁻¹ S_21.

    Args:
        controls: [n, k] values; the other arguments are those of `pearson`.

    Returns:
        [R] coefficients; NaN also where the controls explain all of x or y.
    """
    values = np.column_stack([x, y, controls])  # [n, 2 + k]
    with np.errstate(invalid="ignore"):  # a constant side: NaN throughout
        values = (values - values.mean(axis=0)) / values.std(axis=0)
    covariance = _covariances(values, families, weights)  # [R, 2 + k, 2 + k]
    enough = weights @ np.bincount(families) >= MIN_POINTS + controls.shape[1]
    before = _diagonal(covariance)[:, :2]  # [R, 2]
    if controls.shape[1]:
        across = covariance[:, :2, 2:]  # [R, 2, k]
        inverse = np.linalg.pinv(covariance[:, 2:, 2:], rcond=1e-10, hermitian=True)
        covariance = covariance[:, :2, :2] - across @ inverse @ across.transpose(0, 2, 1)
    left = _diagonal(covariance)[:, :2]
    # What subtraction leaves of a fully explained side is rounding, relative to what was there.
    defined = ((before > NOTHING) & (left > 1e-12 * before)).all(axis=1) & enough
    return _ratio(covariance[:, 0, 1], left[:, 0] * left[:, 1], defined)


def spearman(x: Array, y: Array, families: Integers, weights: Array) -> Array:
    """Spearman's ρ: Pearson's r of the ranks, which each sample ranks anew; ties share their mean rank.

    Arguments and result as in `pearson`.
    """
    sides = [_order(x), _order(y)]
    return np.concatenate([_spearman(sides, weights[block][:, families]) for block in _blocks(len(weights), len(x))])


def _spearman(sides: list[Order], counts: Array) -> Array:
    """From how often each sample takes each point, [R, n]."""
    total = counts.sum(axis=1)
    a, b = (_ranks(side, counts) - total[:, None] / 2 for side in sides)  # their mean is half the number of points
    weighted = counts * a
    across, squares = (weighted * b).sum(axis=1), (weighted * a).sum(axis=1) * (counts * b * b).sum(axis=1)
    return _ratio(across, squares, (squares > 0) & (total >= MIN_POINTS))


def _order(x: Array) -> Order:
    order = np.argsort(x, kind="stable")
    ascending = x[order]
    first = np.concatenate([[True], ascending[1:] > ascending[:-1]])
    value = np.empty_like(order)
    value[order] = np.cumsum(first) - 1
    return Order(order, np.flatnonzero(first), value)


def _equal(order: Order, counts: Array) -> Array:
    """How many points have each distinct value, in samples that take each point so many times; [R, values]."""
    sorted_counts: Array = counts[:, order.points]
    if len(order.starts) == len(order.points):  # no ties: a sum of one each, which takes its time
        return sorted_counts
    equal: Array = np.add.reduceat(sorted_counts, order.starts, axis=1)
    return equal


def _ranks(order: Order, counts: Array) -> Array:
    """Mean ranks less ½: the points below, and half of those equal; [R, n]."""
    equal = _equal(order, counts)
    ranks: Array = (np.cumsum(equal, axis=1) - equal / 2)[:, order.value]
    return ranks


def kendall(x: Array, y: Array, families: Integers, weights: Array) -> Array:
    """Kendall's τ-b: concordant less discordant pairs, over the geometric mean of the pairs not tied on each side.

    Pairs are counted once, between each two families; a sample then weighs these counts. A point and its copy
    are a tie. Arguments and result as in `pearson`.
    """
    order = np.argsort(families, kind="stable")
    starts = np.searchsorted(families[order], np.arange(weights.shape[1]))
    families = families[order]
    sides = [_order(x[order]), _order(y[order])]
    # Signs of differences are those of ranks, which the smallest integers hold and compare quickest.
    a, b = (side.value.astype(np.min_scalar_type(len(x))) for side in sides)
    with_families = [
        np.add.reduceat(_signs(a, block) * _signs(b, block), starts, axis=1, dtype=np.intp)
        for block in _blocks(len(x), len(x))
    ]
    pairs = np.add.reduceat(np.concatenate(with_families), starts)  # [F, F] concordant − discordant
    across = np.einsum("rf,rf->r", weights @ pairs, weights)
    counts = weights[:, families]  # [R, n]
    total = counts.sum(axis=1)
    one, other = (total**2 - (_equal(side, counts) ** 2).sum(axis=1) for side in sides)  # untied
    return _ratio(across, one * other, (one > 0) & (other > 0) & (total >= MIN_POINTS))


def _signs(ranks: NDArray[np.integer], rows: slice) -> NDArray[np.int8]:
    """Signs of the differences between some points and all; [rows, n]."""
    some = ranks[rows, None]
    return (some > ranks).view(np.int8) - (some < ranks).view(np.int8)


def _blocks(count: int, points: int) -> list[slice]:
    """Parts of `count` rows of so many points each, small enough for the cache."""
    step = max(1, BLOCK // points)
    return [slice(start, start + step) for start in range(0, count, step)]


def _covariances(values: Array, families: Integers, weights: Array) -> Array:
    """Covariances of the columns in every sample: within families, and between their means; [R, d, d].

    In two passes, means first: sums of squares less squares of sums would lose digits.
    """
    d = values.shape[1]
    member = (np.arange(weights.shape[1])[:, None] == families).astype(float)  # [F, n]
    sizes = member.sum(axis=1)  # [F]
    means = member @ values / sizes[:, None]  # [F, d]
    rest = values - means[families]
    within = member @ (rest[:, :, None] * rest[:, None, :]).reshape(-1, d * d)  # [F, d²]
    counts = weights * sizes  # [R, F]
    total = counts.sum(axis=1)
    covariances: Array = (weights @ within).reshape(-1, d, d)
    deviations = [side - (counts @ side / total)[:, None] for side in means.T]  # of [R, F]
    for a, one in enumerate(deviations):
        weighted = counts * one
        for b, other in enumerate(deviations[: a + 1]):
            covariances[:, a, b] += np.einsum("rf,rf->r", weighted, other)
            covariances[:, b, a] = covariances[:, a, b]
    covariances /= total[:, None, None]
    return covariances


def _diagonal(matrices: Array) -> Array:
    return np.diagonal(matrices, axis1=1, axis2=2)


def _ratio(across: Array, squares: Array, defined: NDArray[np.bool_]) -> Array:
    """across / sqrt(squares), held within ±1 against rounding; NaN where it is not defined."""
    ratios = np.full(len(across), np.nan)
    ratios[defined] = np.clip(across[defined] / np.sqrt(squares[defined]), -1, 1)
    return ratios
