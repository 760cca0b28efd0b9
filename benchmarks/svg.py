"""Line charts as SVG text: a few panels side by side, logarithmic or linear axes. Knows nothing of what is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 460, 340  # one panel, pixels
LEFT, RIGHT, TOP, BOTTOM = 64, 36, 40, 84
COLOURS = ("#0b62a4", "#c8502d", "#3c8d40", "#7b5aa6", "#8a6d1d")  # told apart also by those who see few colours
MARKS = ("circle", "square", "circle", "square", "circle")


@dataclass(frozen=True)
class Panel:
    """One chart. ``lines`` are points by name; an axis is logarithmic where its ``log`` flag is set."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    log: bool
    ticks: Sequence[float]

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        if self.log:
            return (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return (value - self.low) / (self.high - self.low)


def drawing(panels: Sequence[Panel]) -> str:
    """The whole SVG document."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))  # one colour a name, in all panels
    parts = [_panel(panel, number * WIDTH, names) for number, panel in enumerate(panels)]
    size = f'width="{WIDTH * len(panels)}" height="{HEIGHT}" viewBox="0 0 {WIDTH * len(panels)} {HEIGHT}"'
    style = "text{font:12px sans-serif;fill:#222}.grid{stroke:#ddd}.axis{stroke:#222}.line{fill:none;stroke-width:2}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{style}</style>\n'
    return head + '<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"


def _panel(panel: Panel, offset: int, names: Sequence[str]) -> str:
    points = [point for line in panel.lines.values() for point in line]
    x_axis = _axis([x for x, _ in points], panel.log_x)
    y_axis = _axis([y for _, y in points], panel.log_y)
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + x_axis.place(x) * inner_width, TOP + (1 - y_axis.place(y)) * inner_height

    out = [f'<g transform="translate({offset} 0)">']
    out.append(_text(LEFT + inner_width / 2, 22, panel.title, "middle", "font-weight:bold"))
    for tick in x_axis.ticks:
        x, _ = at(tick, y_axis.low)
        out.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + inner_height}"/>')
        out.append(_text(x, TOP + inner_height + 16, _number(tick), "middle"))
    for tick in y_axis.ticks:
        _, y = at(x_axis.low, tick)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + inner_width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(_text(LEFT - 6, y + 4, _number(tick), "end"))
    out.append(f'<path class="axis" fill="none" d="M{LEFT} {TOP}V{TOP + inner_height}H{LEFT + inner_width}"/>')
    out.append(_text(LEFT + inner_width / 2, TOP + inner_height + 34, panel.x_label, "middle"))
    middle = TOP + inner_height / 2
    out.append(f'<g transform="translate(14 {middle}) rotate(-90)">{_text(0, 0, panel.y_label, "middle")}</g>')
    for place, (name, line) in enumerate(panel.lines.items()):
        out += _line(name, [at(*point) for point in line], names.index(name), place)
    return "\n".join([*out, "</g>"])


def _line(name: str, points: Sequence[tuple[float, float]], number: int, place: int) -> list[str]:
    colour = COLOURS[number % len(COLOURS)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    out = [f'<polyline class="line" stroke="{colour}" points="{path}"/>'] if len(points) > 1 else []
    out += [_mark(x, y, colour, number) for x, y in points]
    x, y = LEFT + (place % 2) * 190, HEIGHT - 30 + (place // 2) * 16
    return [*out, _mark(x, y - 4, colour, number), _text(x + 10, y, name, "start")]


def _mark(x: float, y: float, colour: str, number: int) -> str:
    if MARKS[number % len(MARKS)] == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
    return f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7" fill="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str, style: str = "") -> str:
    more = f' style="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _axis(values: Sequence[float], log: bool) -> _Axis:
    """From 0 (or the decade below) to a round number above; decades, or about five steps of 1, 2 or 5."""
    if log:
        first, last = math.floor(math.log10(min(values)) + 1e-9), math.ceil(math.log10(max(values)) - 1e-9)
        last = max(last, first + 1)
        return _Axis(10.0**first, 10.0**last, True, [10.0**power for power in range(first, last + 1)])
    rough = max(values) / 5 or 1.0
    decade = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * decade for factor in (1, 2, 5, 10) if factor * decade >= rough)
    count = math.ceil(max(values) / step - 1e-9)
    return _Axis(0.0, count * step, False, [number * step for number in range(count + 1)])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 and value == int(value) else f"{value:g}"
