"""Pictures of a run as SVG text, drawn with matplotlib.

A picture is drawn in stand-in colors that are then replaced by CSS variables, so that it follows
the light or dark colors of the page it is put into. No text that comes from a file is drawn.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from asdproto.scoring.metrics import SectionScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from asdproto.results.clips import Spectrogram
    from asdproto.results.system_folder import EmbeddingMap

_BINS = 28  # of a histogram
_MAX_FPR = 0.1  # where pAUC ends

# Stand-in color -> CSS variable of the page; each must differ from every other.
INK, FAINT, NORMAL, ANOMALY = "#010203", "#040506", "#070809", "#0a0b0c"
SOURCE, TARGET, ALL = "#0d0e0f", "#101112", "#131415"
_VARIABLES = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    NORMAL: "var(--normal)",
    ANOMALY: "var(--anomaly)",
    SOURCE: "var(--source)",
    TARGET: "var(--target)",
    ALL: "var(--all)",
}


def section_figure(table: SectionScores, *, threshold: float | None = None) -> str:
    """Score histograms and ROC curves of one section.

    Above the axis the clips of the source domain, below it those of the target domain if there are
    any; the outermost bins hold what lies beyond them. The ROC curves of a domain compare its
    normal clips with the anomalies of both domains, as its AUC does; the area that pAUC measures is
    shaded.

    Args:
      table: Scores and ground truth.
      threshold: Decision threshold on the scores, or None.

    Returns:
      An ``<svg>`` element.
    """
    figure = _figure(3.3, 4.7)
    upper = figure.add_axes((0.14, 0.655, 0.84, 0.335))
    lower = figure.add_axes((0.14, 0.085, 0.84, 0.475))
    _histogram(upper, table, threshold)
    _roc(lower, table)
    return _svg(figure)


def training_figure(rows: Sequence[Mapping[str, Any]]) -> str:
    """Loss and learning rate of one training stage over its epochs.

    Args:
      rows: Lines of ``metrics.jsonl`` of one stage, in order, with ``epoch``, ``loss`` and
        ``learning_rate``; nan where they are not known.

    Returns:
      An ``<svg>`` element.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure(5.2, 3.4)
    upper = figure.add_axes((0.12, 0.46, 0.87, 0.52))
    lower = figure.add_axes((0.12, 0.14, 0.87, 0.27), sharex=upper)
    upper.tick_params(labelbottom=False)
    epochs, losses, rates = (
        np.array([row[name] for row in rows], np.float64)
        for name in ("epoch", "loss", "learning_rate")
    )
    marker = "o" if len(rows) < 3 else ""
    style: dict[str, Any] = {"linewidth": 1.6, "marker": marker, "markersize": 4}
    upper.plot(epochs, losses, color=SOURCE, **style)
    upper.set_ylabel("loss")
    lower.step(epochs, rates, where="post", color=TARGET, **style)
    if np.any(rates > 0):
        lower.set_yscale("log")
    lower.set(xlabel="epoch", ylabel="learning rate")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels()
    return _svg(figure)


def map_figure(places: EmbeddingMap) -> str:
    """Where a machine type's clips lie in a plane; those of the target domain are triangles.

    Args:
      places: Of the clips.

    Returns:
      An ``<svg>`` element.
    """
    figure = _figure(3.3, 3.1)
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    x, y = places.train.T
    axes.scatter(x, y, s=7, color=FAINT, linewidths=0)
    for wanted, color in ((False, NORMAL), (True, ANOMALY)):
        for shifted, marker in ((False, "o"), (True, "^")):
            chosen = (places.anomaly == wanted) & (places.target == shifted)
            x, y = places.test[chosen].T
            axes.scatter(x, y, s=14, marker=marker, color=color, alpha=0.75, linewidths=0)
    # The axes have no meaning of their own, but a distance means the same along both.
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xticks=[], yticks=[])
    return _svg(figure)


def clip_figure(spectrogram: Spectrogram) -> str:
    """A clip's spectrogram.

    Args:
      spectrogram: The features.

    Returns:
      An ``<svg>`` element.
    """
    from matplotlib import colormaps

    height = 1.9
    figure = _figure(3.7, height)
    upper = figure.add_axes((0.125, 1 - 1.5 / height, 0.86, 1.45 / height))
    shown, mels = spectrogram.values.T, len(spectrogram.centers)
    low, high = np.quantile(shown, (0.05, 0.995))
    upper.imshow(
        shown,
        cmap=colormaps["magma"].resampled(40),  # few colors make small files
        vmin=float(low),
        vmax=float(high),
        origin="lower",
        aspect="auto",
        interpolation="none",
        extent=(0.0, spectrogram.seconds, 0.0, mels),
    )
    ticks: list[tuple[float, str]] = []
    for kilohertz in (0.1, 0.2, 0.5, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 48):
        place = float(np.interp(1000 * kilohertz, spectrogram.centers, np.arange(mels) + 0.5))
        inside = spectrogram.centers[0] < 1000 * kilohertz <= spectrogram.centers[-1] * 1.02
        if inside and (not ticks or place - ticks[-1][0] > mels / 8):
            ticks.append((place, f"{kilohertz:g}"))
    upper.set_yticks([place for place, _ in ticks], [label for _, label in ticks])
    upper.set_ylabel("kHz")
    upper.set(xlabel="seconds", xlim=(0.0, spectrogram.seconds))
    return _svg(figure)


def matrix_png(values: np.ndarray, low: float, high: float) -> bytes:
    """A matrix as a png with a pixel for each entry, dark for low and bright for high.

    Args:
      values: Floating, shape ``[rows, columns]``.
      low: Value of the darkest color.
      high: Value of the brightest.

    Returns:
      The file.
    """
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    colors: dict[str, Any] = {"cmap": "viridis", "vmin": low, "vmax": high}
    imsave(buffer, values, format="png", metadata={"Software": ""}, **colors)
    return buffer.getvalue()


def histogram_edges(scores: np.ndarray) -> tuple[np.ndarray, bool]:
    """Bin edges that span all but the outermost percent of the scores on either side.

    Args:
      scores: Floating, shape ``[n]``.

    Returns:
      float64, shape ``[edges]``, increasing, and whether they are spaced in logarithms, as
      suits positive scores most of which would otherwise fall into one bin.
    """
    low, middle, high = np.quantile(scores, [0.01, 0.5, 0.99])
    if high - low <= 1e-12 * max(1.0, abs(low), abs(high)):
        return np.linspace(low - 0.5, high + 0.5, _BINS + 1), False
    if low > 0 and middle - low < (high - low) / 8:
        return np.geomspace(low, high, _BINS + 1), True
    return np.linspace(low, high, _BINS + 1), False


def _histogram(axes: Axes, table: SectionScores, threshold: float | None) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    edges, logarithmic = histogram_edges(table.scores)
    clipped = np.clip(table.scores, edges[0], edges[-1])
    tallest = 1
    both = bool(table.in_domain("target").any())
    for domain, sign in (("source", 1), ("target", -1)) if both else (("source", 1),):
        for anomaly, color in ((False, NORMAL), (True, ANOMALY)):
            chosen = table.in_domain(domain) & (table.anomaly == anomaly)
            counts = np.histogram(clipped[chosen], edges)[0]
            tallest = max(tallest, int(counts.max()))
            axes.stairs(sign * counts, edges, fill=True, color=color, alpha=0.45)
            axes.stairs(sign * counts, edges, color=color, linewidth=1.0)
        axes.text(
            -0.135,
            0.5 + sign * 0.25 if both else 0.5,
            domain if both else "clips",
            transform=axes.transAxes,
            rotation=90,
            ha="center",
            va="center",
            color=INK,
            fontsize=8.5,
        )
    axes.set_ylim(-1.1 * tallest if both else 0.0, 1.1 * tallest)
    axes.axhline(0.0, color=INK, linewidth=0.8)
    if threshold is not None:
        place = min(max(threshold, edges[0]), edges[-1])
        axes.axvline(place, color=INK, linestyle=(0, (4, 2)), linewidth=1.2)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.0f}")
    if logarithmic:
        axes.set_xscale("log")
        # Decades alone where there are several, else the steps between them too.
        steps = (1.0, 2.0, 5.0) if edges[-1] < 80.0 * edges[0] else (1.0,)
        axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=8))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_xlabel("anomaly score" + (" (logarithmic)" if logarithmic else ""))


def _roc(axes: Axes, table: SectionScores) -> None:
    from sklearn.metrics import roc_curve

    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8)
    axes.axvspan(0.0, _MAX_FPR, color=FAINT, alpha=0.18, linewidth=0)
    every = np.ones(len(table.files), bool)
    for chosen, color, width in (
        (every, ALL, 1.0),
        (table.anomaly | table.in_domain("source"), SOURCE, 1.6),
        (table.anomaly | table.in_domain("target"), TARGET, 1.6),
    ):
        anomaly = table.anomaly[chosen]
        if not anomaly.any() or anomaly.all():
            continue
        fpr, tpr, _ = roc_curve(anomaly, table.scores[chosen])
        axes.plot(fpr, tpr, color=color, linewidth=width)
        if color == ALL:
            end = np.interp(_MAX_FPR, fpr, tpr)
            inside = fpr <= _MAX_FPR
            axes.fill_between(
                [*fpr[inside], _MAX_FPR], [*tpr[inside], end], color=ALL, alpha=0.35, linewidth=0
            )
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set_xticks([0, _MAX_FPR, 0.5, 1.0], ["0", f"{_MAX_FPR:g}", "0.5", "1"])
    axes.set_yticks([0, 0.5, 1.0], ["0", "0.5", "1"])
    axes.set(xlabel="false-positive rate", ylabel="true-positive rate")


def _figure(width: float, height: float) -> Figure:
    """An empty figure, made without pyplot: no window, no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _svg(figure: Figure) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    for axes in figure.axes:
        axes.set_facecolor("none")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(colors=INK, labelsize=8, width=0.8)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set(color=INK, fontsize=8.5)
    figure.patch.set_alpha(0.0)
    text = io.StringIO()
    # Text stays text in the page's own font; ids and dates would differ from run to run.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "asdproto"}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
    return _adopt(text.getvalue())


def _adopt(svg: str) -> str:
    """Makes a stand-alone SVG part of a page: no prologue, the page's size, colors and font."""
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
