"""The trade-off figure of many arms: no name stands on another, and all are inside the figure."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from analysis.figures.style import DIRECT_LABEL, MARKERS, Look, new_figure, save, style
from analysis.figures.tradeoff import draw_tradeoff, panel_height
from analysis.statistics.estimates import Estimate


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_names_of_many_arms_do_not_collide(tmp_path: Path, seed: int) -> None:
    # Most arms are about equally accurate, and a few far below, as where heuristics meet differential privacy.
    rng = np.random.default_rng(seed)
    accuracy = [*rng.uniform(0.86, 0.88, 15), *rng.uniform(0.78, 0.84, 4), *rng.uniform(0.69, 0.70, 3)]
    leak = [*10 ** rng.uniform(-2.7, -0.8, 15), *10 ** rng.uniform(-3, -2.4, 7)]
    names = [f"A defense, recipe {place}" for place in range(len(leak))]
    look = Look(color="#0072B2", marker=MARKERS[0], dashes="-")
    with style():
        figure = new_figure(4.8, panel_height(len(names)))
        axes = figure.subplots()
        points = [
            {name: Estimate(mean=value, low=None, high=None, n=8) for name, value in zip(names, values, strict=True)}
            for values in (leak, accuracy)
        ]
        draw_tradeoff(axes, *points, dict.fromkeys(names, look), names[15:], 0.001)
        save(figure, tmp_path, "many")
        boxes = [text.get_window_extent() for text in axes.texts if text.get_gid() == DIRECT_LABEL]
    assert len(boxes) == 22
    overlaps = [
        min(one.x1, other.x1) - max(one.x0, other.x0) > 2 and min(one.y1, other.y1) - max(one.y0, other.y0) > 2
        for one, other in combinations(boxes, 2)
    ]
    assert sum(overlaps) == 0
    width, height = figure.canvas.get_width_height()
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
