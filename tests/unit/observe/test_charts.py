"""Charts: scales, gaps, colours, and pictures that a reader can decode."""

from __future__ import annotations

import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from framework.observe import charts
from framework.observe.charts import Axis, Series, format_number, line_chart, load_colours, png, thin


def svg(figure: str) -> ElementTree.Element:
    """Parse the figure's picture; fails if it is not well-formed."""
    return ElementTree.fromstring(re.search(r"<svg.*</svg>", figure, re.DOTALL).group())


def test_a_line_starts_and_ends_where_its_values_are() -> None:
    picture = svg(line_chart("Loss", [Series("loss", [0, 10], [0.0, 4.0])]))
    (path,) = picture.iter("path")
    x0, y0, x1, y1 = map(float, re.findall(r"[\d.]+", path.get("d")))
    assert (x0, x1) == (charts.LEFT, charts.WIDTH - charts.RIGHT)
    assert (y0, y1) == (charts.HEIGHT - charts.BOTTOM, charts.TOP)


def test_values_that_are_not_numbers_break_the_line_and_are_marked() -> None:
    figure = line_chart("Loss", [Series("loss", [1, 2, 3, 4], [1.0, math.nan, 2.0, math.inf])])
    (path,) = svg(figure).iter("path")
    assert path.get("d").count("M") == 2
    assert figure.count('class="bad"') == 2
    assert "loss is NaN at step 2" in figure
    assert "(2 not finite)" in figure


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [math.nan], [-3.0, -3.0], [1e-9, 2e-9], [1e12, 1e12 + 1]])
def test_odd_values_draw_without_bad_coordinates(values: list[float]) -> None:
    series = [Series("a", list(range(len(values))), values)]
    for figure in (line_chart("a", series), line_chart("a", series, zero=True)):
        svg(figure)
        drawn = re.sub(r' data-chart="[^"]*"', "", figure)
        assert not re.search(r'(x|y|d|height|width|cx|cy|x1|y1)="[^"]*(nan|inf)', drawn)


def labels(figure: str, anchor: str) -> list[str]:
    return [text.text or "" for text in svg(figure).iter("text") if text.get("text-anchor") == anchor]


@pytest.mark.parametrize("values", [[1e12, 1e12 + 1], [1.0e-4, 1.9e-4], [5e6, 5.0001e6], [0.1234561, 0.1234569]])
def test_no_two_ticks_have_the_same_label_and_the_x_axis_says_what_it_counts(values: list[float]) -> None:
    figure = line_chart("a", [Series("a", [0, 1], values)], note="falls")
    ticks = labels(figure, "end")[:-1]
    assert len(ticks) == len(set(ticks)) > 1
    assert labels(figure, "end")[-1] == "step"
    assert "Look for: falls." in figure
    long = labels(line_chart("a", [Series("a", [0, 10_400], values)]), "middle")
    assert len(long) == len(set(long)) > 3


def test_titles_and_data_are_escaped() -> None:
    figure = line_chart('<script>"&', [Series('"><script>', [1], [1.0])])
    assert "<script>" not in figure
    data = json.loads(svg(figure).get("data-chart"))
    assert data["series"][0]["name"] == '"><script>'


def test_thinning_keeps_extremes_and_what_is_not_a_number() -> None:
    values = [0.0] * 10_000
    values[3333], values[7777], values[5000] = 9.0, -9.0, math.nan
    thinned = thin(Series("loss", list(range(10_000)), values))
    assert len(thinned.values) <= 600
    kept = dict(zip(thinned.steps, thinned.values, strict=True))
    assert (kept[3333], kept[7777]) == (9.0, -9.0)
    assert math.isnan(kept[5000])
    assert {0, 9999} <= kept.keys()


def test_axis_maps_both_ends() -> None:
    axis = Axis(2.0, 6.0, 100.0, 0.0)
    assert (axis.at(2.0), axis.at(4.0), axis.at(6.0)) == (100.0, 50.0, 0.0)


def test_load_colours() -> None:
    colours = load_colours(np.array([0.0, 1.0, 2.0, 5.0, math.nan]))
    assert colours[0].tolist() == [38, 110, 200, 255]
    assert colours[1][3] == 0
    assert colours[2].tolist() == colours[3].tolist() == [200, 50, 47, 255]
    assert colours[4].tolist() == [128, 128, 128, 255]


def test_png_is_read_back_by_pillow() -> None:
    image = pytest.importorskip("PIL.Image")
    rgba = np.random.default_rng(0).integers(0, 256, size=(5, 7, 4), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(image.open(io.BytesIO(png(rgba)))), rgba)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.12345, "0.1235"), (12345.6, "12,346"), (1e-5, "1.00e-05"), (math.nan, "NaN"), (-math.inf, "−∞")],
)
def test_format_number(value: float, text: str) -> None:
    assert format_number(value) == text
