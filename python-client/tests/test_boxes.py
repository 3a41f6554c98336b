"""Boxes against numpy."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from longshore._boxes import Box, flat_boxes, intersection, whole

SHAPES = [(), (1,), (7,), (3, 5), (1, 1, 4), (2, 3, 4), (4, 1, 3, 2), (2, 2, 2, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_flat_boxes_cover_the_elements_in_order(shape: tuple[int, ...]) -> None:
    size = math.prod(shape)
    numbers = np.arange(size).reshape(shape)
    for first, last in itertools.combinations(range(size + 1), 2):
        boxes = list(flat_boxes(shape, first, last - first))
        found = np.concatenate([numbers[box.slices()].reshape(-1) for box in boxes])
        assert found.tolist() == list(range(first, last))
        assert len(boxes) <= max(1, 2 * len(shape) - 1)
    assert list(flat_boxes(shape, 0, 0)) == []


@pytest.mark.parametrize("seed", range(50))
def test_intersection(seed: int) -> None:
    random_ = random.Random(seed)
    shape = random_.choice(SHAPES)

    def box() -> Box:
        start = [random_.randrange(extent) for extent in shape]
        return Box(tuple(start), tuple(random_.randrange(end - at + 1) for at, end in zip(start, shape, strict=True)))

    left, right = box(), box()
    marks = np.zeros(shape, dtype=int)
    marks[left.slices()] += 1
    marks[right.slices()] += 1
    common = intersection(left, right)
    wanted = marks == 2
    assert (common.size if common else 0) == int(wanted.sum())
    if common is not None:
        assert wanted[common.slices()].all()
        part = marks[left.slices()]
        assert (part[common.slices(left.start)] == 2).all()
    assert intersection(left, whole(shape)) == (left if left.size else None)
