"""The pictures of a page: spectrograms, scores over time, training curves.

They are SVG text, drawn with matplotlib in stand-in colors that are then replaced by CSS
variables, so that they follow the light or dark colors of the page. No text that comes from a file
is drawn.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from asdproto.results.run_folder import ScoredClip
from asdproto.results.sounds import Sound

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_COLUMNS = 400
# Stand-in color -> CSS variable of the page; each must differ from every other.
INK, FAINT, NORMAL, ANOMALY = "#010203", "#040506", "#070809", "#0a0b0c"
LOSS, RATE = "#0d0e0f", "#101112"
_VARIABLES = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    NORMAL: "var(--normal)",
    ANOMALY: "var(--anomaly)",
    LOSS: "var(--blue)",
    RATE: "var(--orange)",
}


def spectrogram_figure(sound: Sound, limits: tuple[float, float]) -> str:
    """A recording's levels over time and frequency; ``limits`` of its colors in dB."""
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    starts = np.arange(0, len(sound.levels), -(-len(sound.levels) // _MOST_COLUMNS))
    columns = np.add.reduceat(sound.levels, starts, axis=0)
    columns = columns / np.diff(starts, append=len(sound.levels))[:, None]
    figure = _figure(3.9, 2.1)
    axes = figure.add_axes((0.115, 0.21, 0.875, 0.76))
    axes.imshow(
        columns.T,
        cmap=colormaps["magma"].resampled(40),  # few colors make small files
        vmin=limits[0],
        vmax=limits[1],
        origin="lower",
        aspect="auto",
        interpolation="none",
        extent=(0.0, sound.seconds, 0.0, sound.top),
    )
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set(xlabel="seconds", ylabel="kHz")
    return _svg(figure)


def levels_of(*sounds: Sound | None) -> tuple[float, float]:
    """Colors that suit all of some recordings: all but their quietest and loudest levels."""
    levels = np.concatenate([sound.levels.ravel() for sound in sounds if sound is not None])
    low, high = np.quantile(levels, (0.05, 0.995))
    return float(low), float(high)


def score_figure(
    clips: Sequence[ScoredClip], held_out: np.ndarray | None, times: Sequence[Any]
) -> str:
    """Scores of one machine type's recordings, over time where it is known, else in their order.

    Args:
      clips: Its clips.
      held_out: Held-out scores of its normal recordings, or None; nine tenths are shaded.
      times: A datetime each; empty where none is known.
    """
    from matplotlib import dates
    from matplotlib.ticker import MaxNLocator

    figure = _figure(8.2, 2.3)
    axes = figure.add_axes((0.065, 0.19, 0.925, 0.78))
    scores = np.array([clip.score for clip in clips])
    x: Any = dates.date2num(times) if len(times) else np.arange(1, len(clips) + 1)
    labeled = all(clip.state for clip in clips)
    red = np.array([clip.state == "anomaly" if labeled else bool(clip.decision) for clip in clips])
    size = 16 if len(clips) < 300 else 7
    if held_out is not None and len(held_out):
        low, high = np.quantile(held_out, (0.05, 0.95))
        axes.axhspan(low, high, color=NORMAL, alpha=0.13, linewidth=0)
    for chosen, color in ((~red, NORMAL), (red, ANOMALY)):
        axes.scatter(x[chosen], scores[chosen], s=size, color=color, alpha=0.8, linewidths=0)
    axes.axhline(clips[0].threshold, color=INK, linestyle=(0, (4, 2)), linewidth=1.2)
    if _is_skewed(scores):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    if len(times):
        locator = dates.AutoDateLocator(maxticks=8)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("recording, in order of names")
    axes.set_ylabel("score")
    return _svg(figure)


def _is_skewed(scores: np.ndarray) -> bool:
    """Whether most of some positive scores would lie in a tenth of an axis without logarithms."""
    low, middle, high = np.quantile(scores, [0.01, 0.5, 0.99])
    return bool(scores.min() > 0 and middle - low < (high - low) / 8)


def training_figure(rows: Sequence[Mapping[str, Any]]) -> str:
    """Loss and learning rate of one training stage, from its lines of ``metrics.jsonl``."""
    from matplotlib.ticker import MaxNLocator

    figure = _figure(5.2, 3.4)
    for name, bottom, height, color in (
        ("loss", 0.48, 0.5, LOSS),
        ("learning_rate", 0.14, 0.27, RATE),
    ):
        axes = figure.add_axes((0.12, bottom, 0.87, height))
        values = [row[name] for row in rows]
        axes.plot([row["epoch"] for row in rows], values, color=color, marker=".", linewidth=1.6)
        axes.set(xlabel="epoch" if name != "loss" else "", ylabel=name.replace("_", " "))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _svg(figure)


def _figure(width: float, height: float) -> Figure:
    """An empty figure, made without pyplot: no window, no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _svg(figure: Figure) -> str:
    """A figure as part of a page: with the page's size, colors and font, and without prologue."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    for axes in figure.axes:
        axes.set_facecolor("none")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(which="both", colors=INK, labelsize=8, width=0.8)
        for label in (axes.xaxis.label, axes.yaxis.label, axes.xaxis.get_offset_text()):
            label.set(color=INK, fontsize=8.5)
    figure.patch.set_alpha(0.0)
    text = io.StringIO()
    # Text stays text in the page's own font; ids and dates would differ from run to run.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "asdproto"}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)[ >].*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
    # Group ids repeat from picture to picture; only those of clip paths and markers are used.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    return svg.strip()
