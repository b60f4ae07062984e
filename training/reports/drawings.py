"""Small charts as inline SVG, coloured by the style sheet they are shown with. Pure functions of numbers and names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 48, 22, 14, 40
"""Room for the axes of a chart, in its own units."""
MAP_WIDTH, MAP_HEIGHT, NAME_HEIGHT = 1040.0, 620.0, 26.0


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a chart. `style` is its class in the style sheet; `dots` marks its points."""

    points: Sequence[Point]
    style: str = "one"
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Dot:
    """A point of a map, with what the pointer shows over it. `style` is its class in the style sheet."""

    x: float
    y: float
    title: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Name:
    """A name beside a map, for the place (x, y) on it."""

    x: float
    y: float
    text: str
    style: str


def line_chart(series: Sequence[Series], *, title: str, x: str, y: str, top: float | None = None) -> str:
    """Lines over a linear x axis; the y axis starts at zero only where `top` is given, and then ends there."""
    points = [point for line in series for point in line.points]
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    low, high = (0.0, top) if top is not None else _padded(min(ys), max(ys))
    left, right = min(xs), max(xs)
    span = right - left or 1.0

    def place(point: Point) -> Point:
        across = (point[0] - left) / span
        return _across(across), _down((point[1] - low) / (high - low or 1))

    ticks = [(_across((at - left) / span), f"{at:,.0f}") for at in _round_steps(left, right)]
    levels = [(_down((at - low) / (high - low or 1)), f"{at:.3g}") for at in _round_steps(low, high)]
    return _chart([_line(line, place) for line in series], ticks, levels, title=title, x=x, y=y)


def roc_chart(curves: Sequence[Series], *, title: str) -> str:
    """True accept rate over the logarithm of the false accept rate, so that the strict end is seen."""
    least = min(math.floor(math.log10(max(line.points[0][0], 1e-6))) for line in curves)
    least = min(least, -1)

    def place(point: Point) -> Point:
        return _across((math.log10(max(point[0], 10.0**least)) - least) / -least), _down(point[1])

    ticks = [(_across((power - least) / -least), _percent(10.0**power)) for power in range(least, 1)]
    levels = [(_down(part / 4), f"{part * 25}\u202f%") for part in range(5)]
    lines = [_line(line, place) for line in curves]
    return _chart(lines, ticks, levels, title=title, x="false accept rate", y="true accept rate")


def scatter(dots: Sequence[Dot], names: Sequence[Name], *, title: str) -> str:
    """Points on a plane of equal scales, with names at its sides and a line from each to its place."""
    width, height, edge = MAP_WIDTH, MAP_HEIGHT, 26.0
    xs, ys = [dot.x for dot in dots], [dot.y for dot in dots]
    middle = ((min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2)
    scale = min((width - 2 * edge) / (max(xs) - min(xs) or 1), (height - 2 * edge) / (max(ys) - min(ys) or 1))

    def place(x: float, y: float) -> Point:
        return width / 2 + (x - middle[0]) * scale, height / 2 - (y - middle[1]) * scale

    marks = []
    for dot in sorted(dots, key=lambda dot: bool(dot.style)):
        across, down = place(dot.x, dot.y)
        radius = 5 if dot.style else 3.5
        marks.append(
            f'<circle class="dot {dot.style}" cx="{across:.1f}" cy="{down:.1f}" r="{radius}">'
            f"<title>{escape(dot.title)}</title></circle>"
        )
    words = [*_beside(names, place, 0.0), *_beside(names, place, width)]
    return _svg("".join(marks + words), title=title, width=width, height=height, style="map")


def _beside(names: Sequence[Name], place: Callable[[float, float], Point], edge: float) -> list[str]:
    """The names of one half of a map, written down its `edge` in the order of their places, with lines to them."""
    middle = MAP_WIDTH / 2
    found = [(place(name.x, name.y), name) for name in names]
    own = sorted((entry for entry in found if (entry[0][0] < middle) == (edge < middle)), key=lambda entry: entry[0][1])
    drawn, free = [], 0.0
    for at, ((x, y), name) in enumerate(own):
        down = min(max(y, free + NAME_HEIGHT), MAP_HEIGHT - NAME_HEIGHT * (len(own) - at))
        free = down
        start, anchor = (16.0, "start") if edge < middle else (edge - 16.0, "end")
        bend = start + (1 if edge < middle else -1) * 7.9 * len(name.text)
        drawn.append(
            f'<polyline class="leader {name.style}" points="{bend:.1f},{down:.1f} {x:.1f},{y:.1f}"/>'
            f'<text class="name {name.style}" text-anchor="{anchor}" x="{start:.1f}" y="{down + 5:.1f}">'
            f"{escape(name.text)}</text>"
        )
    return drawn


def _across(part: float) -> float:
    return LEFT + part * (WIDTH - LEFT - RIGHT)


def _down(part: float) -> float:
    return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)


def _line(line: Series, place: Callable[[Point], Point]) -> str:
    places = [place(point) for point in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(
        f'<circle class="{line.style}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{point[1]:.4g}</title></circle>'
        for (x, y), point in zip(places, line.points, strict=True)
        if line.dots
    )
    return f'<polyline class="{line.style}" points="{path}"/>{dots}'


def _chart(
    lines: Sequence[str],
    ticks: Sequence[tuple[float, str]],
    levels: Sequence[tuple[float, str]],
    *,
    title: str,
    x: str,
    y: str,
) -> str:
    grid = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text class="tick end" x="{LEFT - 8}" y="{at + 4:.1f}">{text}</text>'
        for at, text in levels
    )
    below = "".join(f'<text class="tick" x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}">{text}</text>' for at, text in ticks)
    axes = (
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}">{escape(x)}</text>'
        f'<text class="hidden">{escape(y)}</text>'
    )
    return _svg(grid + below + axes + "".join(lines), title=title, width=WIDTH, height=HEIGHT, style="chart")


def _svg(content: str, *, title: str, width: float, height: float, style: str) -> str:
    name = escape(title)
    return (
        f'<svg class="{style}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{name}">'
        f"<desc>{name}</desc>{content}</svg>"
    )


def _padded(low: float, high: float) -> tuple[float, float]:
    room = (high - low) * 0.08 or abs(high) * 0.08 or 0.1
    return low - room, high + room


def _round_steps(low: float, high: float) -> list[float]:
    """Four to eight round numbers from `low` to `high`."""
    span = high - low
    if span <= 0:
        return [low]
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 7)
    first = math.ceil(low / step - 1e-9)
    return [at * step for at in range(first, math.floor(high / step + 1e-9) + 1)]


def _percent(rate: float) -> str:
    return f"{rate * 100:g}\u202f%"


def dot_plot(rows: Mapping[str, Sequence[float]], *, title: str) -> str:
    """A row for each name: a dot for every value, and a bar at their mean."""
    step, left, width = 34, 210, 760
    height = TOP + step * len(rows) + BOTTOM
    values = [value for row in rows.values() for value in row]
    low, high = _padded(min(values), max(values))

    def across(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - RIGHT)

    parts = [
        f'<line class="grid" x1="{across(at):.1f}" x2="{across(at):.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>'
        f'<text class="tick" x="{across(at):.1f}" y="{height - BOTTOM + 18}">{at:.3g}</text>'
        for at in _round_steps(low, high)
    ]
    for at, (name, row) in enumerate(rows.items()):
        middle = TOP + step * (at + 0.5)
        style = "two" if at == 0 else "one"
        mean = across(sum(row) / len(row))
        parts.append(f'<text class="tick end" x="{left - 14}" y="{middle + 4:.1f}">{escape(name)}</text>')
        parts.append(
            f'<line class="mean {style}" x1="{mean:.1f}" x2="{mean:.1f}" y1="{middle - 11:.1f}" '
            f'y2="{middle + 11:.1f}"/>'
        )
        parts += [
            f'<circle class="{style} faint" cx="{across(value):.1f}" cy="{middle:.1f}" r="5"><title>{value:.4f}</title>'
            "</circle>"
            for value in row
        ]
    return _svg("".join(parts), title=title, width=width, height=height, style="chart")
