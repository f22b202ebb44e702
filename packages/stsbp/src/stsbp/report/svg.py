"""Charts as SVG, for a page with light and dark colours. Every colour is a CSS variable of the page (style.css).

The charts are `Markup`: they are part of the page as they are, and all text in them is escaped here.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from stsbp_spec.typing import Float32, Float64, Int64, UInt8

__all__ = [
    "COLOURS",
    "Figure",
    "PointSeries",
    "Series",
    "bars",
    "histogram",
    "image",
    "legend",
    "lines",
    "matrix",
    "png",
    "points",
    "raster",
    "spikes",
    "traces",
]

COLOURS = 8
"""The page has the variables `--c0` to `--c7`."""

_WIDTH, _HEIGHT = 460, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 10, 10, 34
_RASTER_WIDTH = 460
_OUTLINE = 'fill="none" stroke="var(--fg)" stroke-dasharray="3 2"'
_LONGEST_NAME = 32
"""Longest name beside a row, in characters. Longer names are shortened, so that the row has room."""


class Series(NamedTuple):
    """A line of a chart: values `y` over `x`."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


class PointSeries(NamedTuple):
    """Points of a chart: values `y` over `x`, each perhaps with a name.

    `joined`: whether a line goes through them in their order.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    names: Sequence[str] = ()
    joined: bool = False


class Figure(NamedTuple):
    """A chart, or a chart and its legend, with a caption."""

    caption: str
    chart: Markup
    legend: Markup = Markup()


def _svg(width: float, height: float, label: str, body: Sequence[str]) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(label)}">' + "".join(body) + "</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "start", attributes: str = "", css_class: str = "tick") -> str:
    return f'<text class="{css_class}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{attributes}>{escape(text)}</text>'


def _shortened(names: Sequence[str], max_length: int = _LONGEST_NAME) -> list[str]:
    """Names of at most so many characters."""
    return [name if len(name) <= max_length else name[: max_length - 1] + "." for name in names]


def _ticks(low: float, high: float, count: int = 5, *, enclosing: bool = False) -> list[float]:
    """About `count` round numbers: those from `low` to `high`; or the fewest that include both, with `enclosing`."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    if enclosing:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    else:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _number(value: float, percent: bool) -> str:
    return f"{value * 100:.3g} %" if percent else f"{value:.4g}"


def _y_axis(ticks: Sequence[tuple[float, float]], percent: bool) -> list[str]:
    """Grid lines at some heights, with the numbers that belong to them."""
    body = []
    for y, tick in ticks:
        body.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(_text(_LEFT - 6, y + 3.5, _number(tick, percent), "end"))
    return body


def legend(series: Sequence[Series | PointSeries]) -> Markup:
    """Names and colours of the lines or points, as HTML."""
    items = (
        f'<span><i style="background:var(--c{i % COLOURS})"></i>{escape(s.name)}</span>' for i, s in enumerate(series)
    )
    return Markup(f'<p class="legend">{"".join(items)}</p>')


def lines(
    label: str,
    x_label: str,
    series: Sequence[Series],
    *,
    percent: bool = False,
    zero: bool = True,
    floor: float | None = None,
) -> Markup:
    """Lines over a common axis.

    Args:
        label: description of the chart, for screen readers.
        x_label: text below the axis.
        series: the lines.
        percent: whether 1 is written as 100 %.
        zero: whether the axis begins at 0 if all values are positive.
        floor: height of a dashed line.
    """
    ys = [y for s in series for y in s.y] + ([] if floor is None else [floor])
    xs = [x for s in series for x in s.x]
    low, high = min(ys), max(ys)
    low = min(0.0, low) if zero else low
    size = max(1.0, abs(low), abs(high))
    if high - low < 1e-12 * size:
        low, high = (low, low + size) if low >= 0 else (low - size, low)
    x_min, x_max = min(xs), max(xs)
    if x_max == x_min:
        x_min, x_max = x_min - 0.5, x_max + 0.5
    plot_width, plot_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    ticks = _ticks(low, high, enclosing=True)
    low, high = ticks[0], ticks[-1]

    def to_pixels(x: float, y: float) -> tuple[float, float]:
        return _LEFT + (x - x_min) / (x_max - x_min) * plot_width, _TOP + (high - y) / (high - low) * plot_height

    body = _y_axis([(to_pixels(x_min, tick)[1], tick) for tick in ticks], percent)
    for tick in _ticks(x_min, x_max, 6):
        if tick == int(tick):
            x = to_pixels(tick, low)[0]
            text = f"{tick:g}" if tick < 1e5 else f"{tick:.1e}"
            body.append(_text(x, _HEIGHT - 20, text, "middle"))
    body.append(_text(_LEFT + plot_width / 2, _HEIGHT - 4, x_label, "middle"))
    if floor is not None:
        y = to_pixels(x_min, floor)[1]
        body.append(f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for i, s in enumerate(series):
        points = [to_pixels(x, y) for x, y in zip(s.x, s.y, strict=True)]
        colour = f"var(--c{i % COLOURS})"
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        body.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        if len(points) <= 40:
            radius = 4 if len(points) == 1 else 2.4
            for (x, y), value, x_value in zip(points, s.y, s.x, strict=True):
                title = f"{escape(s.name)}, {escape(x_label)} {x_value:g}: {_number(value, percent)}"
                body.append(
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"><title>{title}</title></circle>'
                )
    return _svg(_WIDTH, _HEIGHT, label, body)


def points(
    label: str, x_label: str, series: Sequence[PointSeries], *, percent_x: bool = False, percent_y: bool = False
) -> Markup:
    """Points over a common axis, whose axes begin near the smallest values.

    Args:
        label: description of the chart, for screen readers.
        x_label: text below the axis.
        series: the points; at least one.
        percent_x, percent_y: whether 1 is written as 100 %.
    """
    x_ticks, y_ticks = (_enclosing_ticks([x for s in series for x in getattr(s, axis)]) for axis in ("x", "y"))
    plot_width, plot_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def to_pixels(x: float, y: float) -> tuple[float, float]:
        share_x = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        share_y = (y_ticks[-1] - y) / (y_ticks[-1] - y_ticks[0])
        return _LEFT + share_x * plot_width, _TOP + share_y * plot_height

    body = _y_axis([(to_pixels(x_ticks[0], tick)[1], tick) for tick in y_ticks], percent_y)
    for tick in x_ticks:
        x = to_pixels(tick, y_ticks[0])[0]
        anchor = "end" if tick == x_ticks[-1] else "middle"
        body.append(_text(x, _HEIGHT - 20, _number(tick, percent_x), anchor))
    body.append(_text(_LEFT + plot_width / 2, _HEIGHT - 4, x_label, "middle"))
    for i, s in enumerate(series):
        colour = f"var(--c{i % COLOURS})"
        places = [to_pixels(x, y) for x, y in zip(s.x, s.y, strict=True)]
        if s.joined:
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            body.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
        names = s.names or [s.name] * len(s.x)
        for (x, y), x_value, y_value, name in zip(places, s.x, s.y, names, strict=True):
            values = f"{_number(x_value, percent_x)}, {_number(y_value, percent_y)}"
            title = f"{escape(name)}: {values}"
            body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"><title>{title}</title></circle>')
    return _svg(_WIDTH, _HEIGHT, label, body)


def _enclosing_ticks(values: Sequence[float]) -> list[float]:
    """Round numbers that include all values; at least two."""
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(abs(low), abs(high)):
        margin = 0.05 * abs(low) or 0.5
        low, high = low - margin, high + margin
    elif high == low:
        low, high = -0.5, 0.5
    return _ticks(low, high, enclosing=True)


def matrix(counts: Int64, names: Sequence[str]) -> Markup:
    """Confusion matrix `[K, K]`. Rows are true classes. The larger its share of the row, the deeper the colour of a
    cell. Cells of 0 samples are not drawn one by one, because many classes have very many of them."""
    k = len(names)
    size = max(12.0, min(34.0, 480 / k))
    label_width = min(110, 9 + 6.5 * max(len(name) for name in names))
    shown = _shortened(names, 16)
    # Slanted if names are longer than a cell, and upright if cells are too narrow for slanted text.
    angle = 0 if max(map(len, shown)) * 6.5 < size else 45 if size >= 20 else 90
    header_height = {0: 18.0, 45: label_width * 0.75 + 8, 90: label_width}[angle]
    body = []
    for j, name in enumerate(shown):
        x, y = label_width + (j + 0.5) * size + (3.5 if angle == 90 else 0), header_height - 6
        turn = f' transform="rotate({-angle} {x:.1f} {y:.1f})"' if angle else ""
        anchor = "start" if angle else "middle"
        body.append(_text(x, y, name, anchor, turn))
    for i, row in enumerate(counts):
        y = header_height + i * size
        body.append(_text(label_width - 6, y + size / 2 + 3.5, shown[i], "end"))
        body.append(
            f'<rect x="{label_width:.1f}" y="{y:.1f}" width="{k * size - 1:.1f}" height="{size - 1:.1f}" '
            'fill="var(--c1)" fill-opacity="0.05"/>'
        )
        total = row.sum()
        for j in np.flatnonzero(row).tolist():
            count = int(row[j])
            x, share = label_width + j * size, count / total
            colour = "var(--c0)" if i == j else "var(--c1)"
            title = f"{escape(names[i])} read as {escape(names[j])}: {count} ({share:.1%})"
            body.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{size - 1:.1f}" height="{size - 1:.1f}" fill="{colour}" '
                f'fill-opacity="{0.05 + 0.85 * math.sqrt(share):.2f}"><title>{title}</title></rect>'
            )
            if size >= 20:
                style = "on" if share > 0.35 else "cell"
                body.append(_text(x + size / 2, y + size / 2 + 4, str(count), "middle", css_class=style))
    edge = label_width + k * size + (label_width * 0.7 if angle == 45 else 0)
    return _svg(edge + 4, header_height + k * size + 2, "confusion matrix", body)


def _marks(train: UInt8, x_start: float, y_start: float, step_width: float, row_height: float) -> str:
    """A path of vertical bars, one per spike, of trains `[T, N]` in rows of height `row_height`."""
    times, neurons = np.nonzero(train)
    middle = x_start + (times + 0.5) * step_width
    return "".join(
        f"M{x:.1f} {y_start + n * row_height + row_height * 0.1:.1f}v{row_height * 0.8:.1f}"
        for x, n in zip(middle, neurons, strict=True)
    )


def raster(outputs: UInt8, targets: UInt8, names: Sequence[str], strong: Sequence[int] = ()) -> Markup:
    """Output spikes over target spikes, `[T, N]` each. Wide pale bars are targets, and narrow dark bars are outputs.

    Args:
        outputs, targets: the spike trains.
        names: names of the neurons.
        strong: neurons whose names are bold.
    """
    names = _shortened(names)
    steps, n = outputs.shape
    row_height = max(5.0, min(16.0, 320 / n))
    label_width = 12 + 6.2 * max(len(name) for name in names) if row_height >= 9 else 12.0
    step_width = (_RASTER_WIDTH - label_width) / steps
    body = _rows(n, label_width, row_height, names, strong)
    target_stroke = max(1.5, step_width * 0.85)
    path = _marks(targets, label_width, 0, step_width, row_height)
    body.append(f'<path d="{path}" stroke="var(--target)" stroke-width="{target_stroke:.1f}"/>')
    output_stroke = max(1.0, min(3.0, step_width * 0.35))
    path = _marks(outputs, label_width, 0, step_width, row_height)
    body.append(f'<path d="{path}" stroke="var(--fg)" stroke-width="{output_stroke:.1f}"/>')
    body += _time_axis(steps, label_width, step_width, n * row_height)
    return _svg(_RASTER_WIDTH + 4, n * row_height + 18, "output spikes over target spikes", body)


def spikes(train: UInt8, colour: str = "var(--fg)") -> Markup:
    """A raster `[T, N]` without names, for inputs."""
    steps, n = train.shape
    row_height = max(2.0, min(10.0, 220 / n))
    step_width = (_RASTER_WIDTH - 12) / steps
    path = _marks(train, 12, 0, step_width, row_height)
    body = [f'<path d="{path}" stroke="{colour}" stroke-width="{max(1.0, min(3.0, step_width * 0.5)):.1f}"/>']
    return _svg(
        _RASTER_WIDTH + 4, n * row_height + 18, "input spikes", body + _time_axis(steps, 12, step_width, n * row_height)
    )


def _rows(n: int, label_width: float, row_height: float, names: Sequence[str], strong: Sequence[int]) -> list[str]:
    """Bands and names beside the rows of a raster."""
    body = []
    for i in range(n):
        if i % 2 == 0:
            band_width = _RASTER_WIDTH - label_width
            body.append(
                f'<rect class="band" x="{label_width:.1f}" y="{i * row_height:.1f}" width="{band_width:.1f}" '
                f'height="{row_height:.1f}"/>'
            )
        if row_height >= 9:
            weight = ' font-weight="700"' if i in strong else ""
            y = (i + 0.5) * row_height + 3.5
            body.append(_text(label_width - 6, y, names[i], "end", weight))
    return body


def _time_axis(steps: int, label_width: float, step_width: float, y: float) -> list[str]:
    ticks = [t for t in _ticks(0, max(1, steps - 1), 6) if t == int(t)]
    return [_text(label_width + (t + 0.5) * step_width, y + 13, f"{t:g}", "middle") for t in ticks]


def traces(
    potentials: Float32,
    outputs: UInt8,
    threshold: float | None,
    names: Sequence[str],
    colours: Sequence[str],
    targets: Float32 | None = None,
) -> Markup:
    """Membrane potentials `[T, N]` of some neurons, each in its colour, with spikes (dots) and threshold (dashed).

    `threshold` None: there is none. `targets` `[T, N]` are drawn as wide pale lines; None: there are none.
    """
    names = _shortened(names)
    steps, n = potentials.shape
    row_height = 64.0
    label_width = 12 + 6.2 * max(len(name) for name in names)
    step_width = (_RASTER_WIDTH - label_width) / steps
    body: list[str] = []
    for i in range(n):
        u = potentials[:, i].astype(np.float64)
        min_high = 1e-6 if threshold is None else threshold * 1.1
        target = u if targets is None else targets[:, i].astype(np.float64)
        low, high = min(0.0, float(u.min()), float(target.min())), max(min_high, float(u.max()), float(target.max()))
        top = i * row_height + 3

        def y(value: float, low: float = low, high: float = high, top: float = top) -> float:
            return top + (high - value) / (high - low) * (row_height - 10)

        points = [(label_width + (t + 0.5) * step_width, y(value)) for t, value in enumerate(u.tolist())]
        for css_class, value in (("grid", 0.0), *(() if threshold is None else (("limit", threshold),))):
            body.append(
                f'<line class="{css_class}" x1="{label_width:.1f}" x2="{_RASTER_WIDTH}" y1="{y(value):.1f}" '
                f'y2="{y(value):.1f}"/>'
            )
            if css_class == "limit" or threshold is None or y(value) - y(threshold) >= 11:
                body.append(_text(_RASTER_WIDTH + 4, y(value) + 3.5, f"{value:.3g}"))
        if targets is not None:
            pale = "L".join(f"{x:.1f} {y(value):.1f}" for (x, _), value in zip(points, target.tolist(), strict=True))
            body.append(f'<path d="M{pale}h0" fill="none" stroke="var(--target)" stroke-width="4"/>')
        path = "M" + "L".join(f"{x:.1f} {v:.1f}" for x, v in points)
        body.append(f'<path d="{path}h0" fill="none" stroke="{colours[i]}" stroke-width="1.5" stroke-linecap="round"/>')
        for t in np.flatnonzero(outputs[:, i]).tolist():
            body.append(f'<circle cx="{points[t][0]:.1f}" cy="{points[t][1]:.1f}" r="2.2" fill="var(--fg)"/>')
        body.append(_text(label_width - 6, top + row_height / 2, names[i], "end"))
    body += _time_axis(steps, label_width, step_width, n * row_height)
    return _svg(_RASTER_WIDTH + 32, n * row_height + 18, "membrane potentials", body)


def bars(
    values: Float64,
    names: Sequence[str],
    strong: Sequence[int] = (),
    pale: Sequence[int] = (),
    *,
    label: str = "distance to each label sequence",
    percent: bool = False,
    largest: float = 0.0,
) -> Markup:
    """Values `[K]` as bars, such as distances. `strong` (the smallest one) and `pale` (the label's) have own colours.

    Args:
        values: the values, at least 0.
        names: names beside the bars.
        strong, pale: numbers of the bars with other colours.
        label: description of the chart, for screen readers.
        percent: whether 1 is written as 100 %.
        largest: value of the longest bar that can be; 0: the largest value.
    """
    names = _shortened(names)
    row_height = max(10.0, min(16.0, 320 / len(names)))
    label_width = 12 + 6.2 * max(len(name) for name in names)
    longest = max(1e-12, largest or float(values.max()))
    body = []
    for i, (name, value) in enumerate(zip(names, values.tolist(), strict=True)):
        y = i * row_height
        colour = "var(--c0)" if i in strong else "var(--target)" if i in pale else "var(--line)"
        body.append(
            _text(label_width - 6, y + row_height / 2 + 3.5, name, "end")
            + f'<rect x="{label_width:.1f}" y="{y + 2:.1f}" width="{max(0.5, 150 * value / longest):.1f}" '
            f'height="{row_height - 4:.1f}" fill="{colour}"/>'
            + _text(label_width + 156, y + row_height / 2 + 3.5, _number(value, percent))
        )
    return _svg(label_width + 210, len(names) * row_height + 4, label, body)


def histogram(
    label: str,
    x_label: str,
    integers: Sequence[int],
    shares: Sequence[float],
    chance_shares: Sequence[float] | None = None,
) -> Markup:
    """Shares as upright bars, one for each of some consecutive integers.

    Args:
        label: description of the chart, for screen readers.
        x_label: text below the axis.
        integers: the integers, ascending.
        shares: the shares of each, 0 to 1.
        chance_shares: shares by chance, drawn as outlines.
    """
    plot_width, plot_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    ticks = _ticks(0.0, max(1e-9, *shares, *(chance_shares or ())), enclosing=True)
    step, high = plot_width / len(integers), ticks[-1]
    body = _y_axis([(_TOP + (1 - tick / high) * plot_height, tick) for tick in ticks], percent=True)
    label_interval = -(-len(integers) // 12)
    bar_groups = (("", shares, 'fill="var(--c0)"'), ("by chance, ", chance_shares, _OUTLINE))
    for i, integer in enumerate(integers):
        x, text = _LEFT + i * step, f"{integer:+d}" if integer else "0"
        if integer % label_interval == 0:
            body.append(_text(x + step / 2, _HEIGHT - 20, text, "middle"))
        for prefix, values, style in bar_groups:
            if values is not None and values[i] > 0:
                height = values[i] / high * plot_height
                body.append(
                    f'<rect x="{x + step * 0.1:.1f}" y="{_TOP + plot_height - height:.1f}" width="{step * 0.8:.1f}" '
                    f'height="{height:.1f}" {style}><title>{prefix}{text}: {values[i]:.2%}</title></rect>'
                )
    body.append(_text(_LEFT + plot_width / 2, _HEIGHT - 4, x_label, "middle"))
    return _svg(_WIDTH, _HEIGHT, label, body)


def png(pixels: UInt8) -> str:
    """A PNG as a data URI, from pixels `[H, W, 4]` (red, green, blue, opacity)."""
    height, width = pixels.shape[:2]
    rows = np.zeros((height, 1 + 4 * width), dtype=np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)

    def chunk(chunk_type: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + chunk_type + data + struct.pack(">I", zlib.crc32(chunk_type + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    compressed = zlib.compress(rows.tobytes(), 9)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(data).decode()


def image(picture: UInt8, label: str) -> Markup:
    """A picture `[C, H, W]` (grey or colours) or event counts over time, `[2, H, W]` (OFF in blue, ON in red)."""
    channels, height, width = picture.shape
    pixels: UInt8 = np.full((height, width, 4), 255, dtype=np.uint8)
    if channels == 2:
        share = picture.astype(np.float64) / max(1, int(picture.max()))
        off_share, on_share = share
        # Blue or red for the more frequent kind, with an opacity that depends on the number of events.
        pixels[..., :3] = np.where((on_share >= off_share)[..., None], (220, 60, 40), (50, 100, 235))
        pixels[..., 3] = np.round(255 * np.sqrt(share.max(axis=0))).astype(np.uint8)
    elif channels == 3:
        pixels[..., :3] = picture.transpose(1, 2, 0)
    else:
        pixels[..., :3] = picture[0][..., None]
    scale = max(1, 160 // max(height, width))
    size = f'width="{width * scale}" height="{height * scale}"'
    return Markup(f'<img class="pixels" src="{png(pixels)}" {size} alt="{escape(label)}">')
