"""What the drawings promise: a seed names a data set, answers are true of the pixels, nothing overlaps."""

import random

import numpy as np
import pytest

from pocket import drawings


def test_a_seed_names_a_data_set():
    first, second = ([drawings.picture_task(random.Random(seed)) for seed in range(20)] for _ in range(2))
    assert [task[1:] for task in first] == [task[1:] for task in second]
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("color", drawings.COLORS)
def test_the_middle_of_a_shape_has_its_color(color):
    drawn = drawings.draw(random.Random(3), kind="circle", color=color, size=(120, 90))
    spot = drawn.spots[0]
    pixel = np.asarray(drawn.image, dtype=int)[int(spot.y * 90), int(spot.x * 120)]
    assert min(np.abs(pixel - np.array(tone)).max() for tone in drawings.COLORS[color]) <= 30


@pytest.mark.parametrize("count", drawings.COUNTS)
def test_shapes_lie_apart_inside_the_picture(count):
    rng = random.Random(count)
    for _ in range(50):
        drawn = drawings.draw(rng, count)
        width, height = drawn.image.size
        middles = np.array([(spot.x * width, spot.y * height) for spot in drawn.spots])
        radii = np.array([spot.half_width * width for spot in drawn.spots])
        assert len(middles) == count
        gaps = np.linalg.norm(middles[:, None] - middles[None], axis=-1) - (radii[:, None] + radii[None])
        assert (gaps[~np.eye(count, dtype=bool)] > 0).all()
        assert (middles.min(0) > 0).all()
        assert (middles.max(0) < (width, height)).all()


@pytest.mark.parametrize(("direction", "step"), drawings.DIRECTIONS.items())
def test_a_shape_moves_where_it_is_said_to(direction, step):
    rng = random.Random(5)
    for _ in range(20):
        made = drawings.clip(rng, direction=direction)
        way = np.array([made.spots[-1].x - made.spots[0].x, made.spots[-1].y - made.spots[0].y])
        assert way @ np.array(step) > 0.2
        assert abs(way @ np.array(step[::-1])) < 0.1
        assert len({frame.size for frame in made.frames}) == 1
