"""Charts as inline SVG for the report: readable without JavaScript, on paper, in light and in dark.

Colours are the page's CSS variables (`--s0`.. for series). Every chart carries its points as JSON in `data-chart`, from
which the page's script shows values under the pointer.
"""

from __future__ import annotations

import base64
import html
import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from framework.types import EvalTask

WIDTH, HEIGHT = 520, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 26
COLOURS = 8  # --s0 .. --s7 in the page's style
MAX_POINTS, MAX_COLUMNS = 500, 240
SMOOTH_FROM = 60  # points from which a line is smoothed


@dataclass(frozen=True)
class Series:
    """One line: values over ascending steps, which may hold NaN and infinities."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class Axis:
    """Linear scale from values to pixels."""

    low: float
    high: float
    start: float  # pixel of `low`
    end: float

    def at(self, value: float) -> float:
        """Pixel of `value`."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def line_chart(
    title: str, series: Sequence[Series], unit: str = "", zero: bool = False, smooth: bool = True, note: str = ""
) -> str:
    """Draw lines over steps; `zero` keeps zero on the axis, `smooth` draws a moving mean where points are many.

    `note` is a line under the title on what the chart should look like.

    Points that are not numbers become crosses at the top.
    """
    finite = [value for s in series for value in s.values if math.isfinite(value)]
    x, y = _step_axis(series), _value_axis(finite, zero)
    marks = [_line(s, i, x, y, smooth and len(s.values) >= SMOOTH_FROM) for i, s in enumerate(series)]
    return _figure(title, unit, [*_grid(x, y), *marks], series, x, note)


def heat_map(title: str, steps: Sequence[int], ratio_EN: npt.NDArray[np.float64]) -> str:
    """Draw load relative to the mean, experts down, steps across; many steps are averaged into MAX_COLUMNS columns."""
    groups = np.array_split(np.arange(len(steps)), min(len(steps), MAX_COLUMNS))
    columns_EC = np.stack([ratio_EN[:, group].mean(axis=1) for group in groups], axis=1)
    experts = ratio_EN.shape[0]
    height = min(320, max(64, 9 * experts))
    x = Axis(steps[0], max(steps[-1], steps[0] + 1), LEFT, WIDTH - RIGHT)
    y = Axis(0, experts, TOP, TOP + height)
    picture = base64.b64encode(png(load_colours(columns_EC))).decode()
    marks = [
        f'<image x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{height}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="data:image/png;base64,{picture}"/>',
        f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{height}"/>',
        *(_text(LEFT - 6, y.at(e + 0.5) + 3, str(e), "end") for e in sorted({0, experts // 2, experts - 1})),
        *_step_labels(x, TOP + height + 16),
    ]
    return _frame(title, "expert down, step across", "", marks, TOP + height + BOTTOM, None)


def evaluation_chart(rows: Sequence[tuple[str, Sequence[EvalTask | None]]], labels: Sequence[str]) -> str:
    """Draw pass@1 of each checkpoint for each task, with one standard error to each side."""
    left, row_height, width = 150, 26, 2 * WIDTH + 20
    height = TOP + row_height * len(rows) + BOTTOM
    x = Axis(0.0, 1.0, left, width - 16)
    marks = []
    for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        marks.append(_rule(x.at(tick), TOP, x.at(tick), height - BOTTOM))
        marks.append(_text(x.at(tick), height - 8, f"{tick:.0%}", "middle"))
    for i, (name, results) in enumerate(rows):
        middle = TOP + row_height * (i + 0.5)
        marks.append(_text(left - 10, middle + 4, name, "end", "strong" if i == 0 else ""))
        known = [(j, result.pass_at_1, result.pass_at_1_se) for j, result in enumerate(results) if result is not None]
        found = [(j, value, error or 0.0) for j, value, error in known if value is not None]
        ends = [x.at(value) for _, value, _ in found]
        if len(ends) > 1:
            marks.append(f'<line class="span" x1="{min(ends):.1f}" x2="{max(ends):.1f}" y1="{middle}" y2="{middle}"/>')
        for j, value, error in found:
            low, high = (min(1.0, max(0.0, value + s * error)) for s in (-1, 1))
            tip = f"{labels[j]}, {name}: {value:.1%} ± {error:.1%}"
            marks.append(
                f'<g style="color:var(--s{j % COLOURS})"><title>{html.escape(tip)}</title>'
                f'<line class="error" x1="{x.at(low):.1f}" x2="{x.at(high):.1f}" y1="{middle}" y2="{middle}"/>'
                f'<circle cx="{x.at(value):.1f}" cy="{middle}" r="5" fill="currentColor"/></g>'
            )
    legend = _legend([(label, "") for label in labels])
    return _frame("pass@1 by task", "± one standard error over prompts", legend, marks, height, None, width)


def load_colours(ratio: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Colour loads relative to their mean: blue at 0, clear at 1, red at 2 and above, grey where not a number.

    ratio: any shape; returns that shape + [4], red, green, blue and alpha.
    """
    excess = np.clip(np.nan_to_num(ratio, nan=1.0, posinf=2.0, neginf=0.0), 0.0, 2.0) - 1.0
    rgb = np.where(excess[..., None] > 0, np.array([200.0, 50.0, 47.0]), np.array([38.0, 110.0, 200.0]))
    rgba = np.concatenate([rgb, 255.0 * np.abs(excess)[..., None]], axis=-1)
    rgba = np.where(np.isnan(ratio)[..., None], np.array([128.0, 128.0, 128.0, 255.0]), rgba)
    colours: npt.NDArray[np.uint8] = rgba.round().astype(np.uint8)
    return colours


def png(rgba: npt.NDArray[np.uint8]) -> bytes:
    """Encode [height, width, 4] as PNG (RFC 2083), so that a report needs no imaging library."""
    height, width, _ = rgba.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.tobytes() for row in rgba)
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def format_number(value: float) -> str:
    """Four significant digits, thousands apart; NaN and infinities by name."""
    if not math.isfinite(value):
        return {"nan": "NaN", "inf": "∞", "-inf": "−∞"}[str(float(value))]
    if value and (abs(value) < 1e-3 or abs(value) >= 1e7):
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def thin(series: Series, limit: int = MAX_POINTS) -> Series:
    """Keep each run of points' minimum and maximum, and every point that is not a number, in about `limit` points."""
    if len(series.values) <= limit:
        return series
    keep = {0, len(series.values) - 1}
    for group in np.array_split(np.arange(len(series.values)), limit // 2):
        finite = [int(i) for i in group if math.isfinite(series.values[i])]
        keep.update(int(i) for i in group if not math.isfinite(series.values[i]))
        if finite:
            keep.update((min(finite, key=series.values.__getitem__), max(finite, key=series.values.__getitem__)))
    chosen = sorted(keep)
    return Series(series.name, [series.steps[i] for i in chosen], [series.values[i] for i in chosen])


def _line(series: Series, index: int, x: Axis, y: Axis, smooth: bool) -> str:
    colour = f"color:var(--s{index % COLOURS})"
    raw = thin(series)
    marks = [_path(raw, x, y, "raw" if smooth else "line")]
    if smooth:
        marks.append(_path(thin(_smoothed(series)), x, y, "line"))
    for step, value in zip(raw.steps, raw.values, strict=True):
        if not math.isfinite(value):
            tip = f"{series.name} is {format_number(value)} at step {step}"
            marks.append(
                f'<text class="bad" x="{x.at(step):.1f}" y="{TOP + 8}"><title>{html.escape(tip)}</title>×</text>'
            )
    if sum(map(math.isfinite, series.values)) == 1:
        step, value = next((s, v) for s, v in zip(series.steps, series.values, strict=True) if math.isfinite(v))
        marks.append(f'<circle cx="{x.at(step):.1f}" cy="{y.at(value):.1f}" r="3" fill="currentColor"/>')
    return f'<g style="{colour}">{"".join(marks)}</g>'


def _path(series: Series, x: Axis, y: Axis, style: str) -> str:
    commands, pen_down = [], False
    for step, value in zip(series.steps, series.values, strict=True):
        if math.isfinite(value):
            commands.append(f"{'L' if pen_down else 'M'}{x.at(step):.1f} {y.at(value):.1f}")
        pen_down = math.isfinite(value)
    return f'<path class="{style}" d="{"".join(commands)}"/>'


def _smoothed(series: Series) -> Series:
    """Centred mean over a 30th of the points; what is not a number is left out of the mean."""
    values = np.asarray(series.values, dtype=np.float64)
    half = max(1, len(values) // 60)
    finite = np.isfinite(values)
    window = np.ones(2 * half + 1)
    sums = np.convolve(np.where(finite, values, 0.0), window, mode="same")
    counts = np.convolve(finite.astype(float), window, mode="same")
    return Series(series.name, series.steps, [s / c if c else math.nan for s, c in zip(sums, counts, strict=True)])


def _step_axis(series: Sequence[Series]) -> Axis:
    steps = [step for s in series for step in s.steps] or [0]
    low, high = float(min(steps)), float(max(steps))
    pad = 0.5 if low == high else 0.0
    return Axis(low - pad, high + pad, LEFT, WIDTH - RIGHT)


def _value_axis(values: Sequence[float], zero: bool) -> Axis:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        low, high = (0.0, 1.0) if low == 0 else (low - abs(low) * 0.1, high + abs(high) * 0.1)
    ticks = _ticks(low, high, 4)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else high - low
    bottom = low if low == ticks[0] else ticks[0] - step
    top = high if high == ticks[-1] else ticks[-1] + step
    return Axis(bottom, top, HEIGHT - BOTTOM, TOP)


def _ticks(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    step = max(1.0, math.ceil(step)) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _grid(x: Axis, y: Axis) -> list[str]:
    marks = []
    ticks = _ticks(y.low, y.high, 4)
    for tick, label in zip(ticks, _labels(ticks), strict=True):
        marks.append(_rule(x.start, y.at(tick), x.end, y.at(tick)))
        marks.append(_text(LEFT - 6, y.at(tick) + 4, label, "end"))
    return marks + _step_labels(x, HEIGHT - 8)


def _step_labels(x: Axis, height: float) -> list[str]:
    """Ticks of the x axis, and what it counts."""
    ticks = [tick for tick in _ticks(x.low, x.high, 6, whole=True) if x.at(tick) < x.end - 34]
    marks = [_text(x.at(tick), height, label, "middle") for tick, label in zip(ticks, _labels(ticks), strict=True)]
    return [*marks, _text(x.end, height, "step", "end")]


def _labels(ticks: Sequence[float]) -> list[str]:
    """The ticks as text, with as many digits as tell each from the others."""
    labels = [_number(tick) for tick in ticks]
    for digits in range(2, 18):
        if len(set(labels)) == len(labels):
            break
        labels = [f"{tick:.{digits}g}" for tick in ticks]
    return labels


def _figure(title: str, unit: str, marks: Sequence[str], series: Sequence[Series], x: Axis, note: str = "") -> str:
    thinned = [thin(s) for s in series]
    data = {
        "x": [x.low, x.high, x.start, x.end],
        "y": [TOP, HEIGHT - BOTTOM],
        "series": [
            {"name": s.name, "steps": list(s.steps), "values": list(map(format_number, s.values))} for s in thinned
        ],
    }
    legend = _legend([(s.name, _summary(s)) for s in series])
    return _frame(title, unit, legend, marks, HEIGHT, data, note=note)


def _summary(series: Series) -> str:
    """Last value, and how many are not numbers."""
    bad = sum(not math.isfinite(value) for value in series.values)
    last = format_number(series.values[-1]) if series.values else ""
    return f"{last} ({bad} not finite)" if bad else last


def _frame(
    title: str,
    unit: str,
    legend: str,
    marks: Sequence[str],
    height: float,
    data: Mapping[str, Any] | None,
    width: int = WIDTH,
    note: str = "",
) -> str:
    expected = f'<p class="unit">Look for: {html.escape(note)}.</p>' if note else ""
    attribute = f' data-chart="{html.escape(json.dumps(data, separators=(",", ":")))}"' if data else ""
    return (
        f'<figure><figcaption>{html.escape(title)} <span class="unit">{html.escape(unit)}</span></figcaption>'
        f"{expected}{legend}"
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{html.escape(title)}"{attribute}>'
        f"{''.join(marks)}</svg></figure>"
    )


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    items = (
        f'<li><i style="background:var(--s{i % COLOURS})"></i>{html.escape(name)} <b>{html.escape(value)}</b></li>'
        for i, (name, value) in enumerate(entries)
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, style: str = "") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _number(value: float) -> str:
    if value and abs(value) < 1e-3:
        return f"{value:.0e}"
    return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value:,.6g}"
