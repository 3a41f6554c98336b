"""Boxes: rectangular pieces of a tensor, as a first index and an extent in each dimension."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Box:
    """The elements from `start` on, `shape` of them in each dimension."""

    start: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements in it."""
        return prod(self.shape)

    def slices(self, origin: Sequence[int] | None = None) -> tuple[slice, ...]:
        """As an index into an array whose first element is at `origin`."""
        starts = self.start if origin is None else [at - base for at, base in zip(self.start, origin, strict=True)]
        return tuple(slice(at, at + count) for at, count in zip(starts, self.shape, strict=True))


def whole(shape: Sequence[int]) -> Box:
    """All of a tensor."""
    return Box((0,) * len(shape), tuple(shape))


def intersection(left: Box, right: Box) -> Box | None:
    """What both have; None when that is no element."""
    starts = tuple(map(max, left.start, right.start))
    ends = [min(a + m, b + n) for a, m, b, n in zip(left.start, left.shape, right.start, right.shape, strict=True)]
    shape = tuple(end - start for start, end in zip(starts, ends, strict=True))
    return Box(starts, shape) if all(extent > 0 for extent in shape) else None


def flat_boxes(shape: Sequence[int], first: int, count: int) -> Iterator[Box]:
    """The boxes that `count` elements from number `first` on consist of, in row-major order.

    At most two for each dimension but the last, and one more.
    """
    if count <= 0:
        return
    if not shape:
        yield Box((), ())
        return
    rest = tuple(shape[1:])
    inner = prod(rest)
    end = first + count
    while first < end:
        row, offset = divmod(first, inner)
        rows = (end - first) // inner if offset == 0 else 0
        if rows:
            yield Box((row,) + (0,) * len(rest), (rows, *rest))
            first += rows * inner
        else:
            taken = min(inner - offset, end - first)
            for box in flat_boxes(rest, offset, taken):
                yield Box((row, *box.start), (1, *box.shape))
            first += taken
