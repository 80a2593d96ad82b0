"""The figures of a run as one picture for the documentation.

It brings its own pale background, so that it can be read on a dark page too, and draws letters as outlines,
so that it looks the same everywhere.  Two runs with the same figures give the same file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.measures import CLIENTS, Spread
from benchmarks.report import WAY_SAYS

OURS, OURS_OTHERWISE, THEIRS, FLOOR = "#0072B2", "#8CC5E3", "#B9B9B9", "#8A8A8A"
GOAL, INK, CARD = "#B34700", "#262626", "#FBFBF9"


def _color(peer: str) -> str:
    if peer == "raw socket":
        return FLOOR
    return OURS if peer == "objserver" else OURS_OTHERWISE if peer.startswith("objserver") else THEIRS


def _bars(panel: Axes, title: str, figures: dict[str, Spread], decimals: int, log: bool = False) -> None:
    """One each, the first on top, with a line from the smallest to the largest start.

    Bars where the scale begins at 0; dots where it is logarithmic, since a bar has no length there.
    """
    names, spreads = list(figures), list(figures.values())
    medians = [spread.median for spread in spreads]
    colors = [_color(name) for name in names]
    if log:
        panel.hlines(names, 0.1, medians, color=colors, linewidth=1.6, alpha=0.7, zorder=2)
        panel.scatter(medians, names, s=75, color=colors, zorder=3)
    else:
        panel.barh(names, medians, height=0.68, color=colors, zorder=2)
    for y, spread in enumerate(spreads):
        panel.plot([min(spread.starts), max(spread.starts)], [y, y], color=INK, linewidth=1.1, zorder=3)
        panel.annotate(
            f"{spread.median:,.{decimals}f}", (max(spread.starts), y), (8, 0), textcoords="offset points",
            va="center", fontsize=9, color=INK, fontweight="bold" if names[y] == "objserver" else "normal",
        )  # fmt: skip
    panel.set_ylim(max(len(names), 6) - 0.4, -0.6)
    largest = max(max(spread.starts) for spread in spreads)
    if log:
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter("{x:,g}")
        panel.xaxis.set_minor_formatter("")
        panel.set_xlim(min(medians) / 2, largest * 2.2)
    else:
        panel.set_xlim(0, largest * 1.17)
        panel.xaxis.set_major_formatter("{x:,.0f}")
    for label in panel.get_yticklabels():
        if label.get_text() == "objserver":
            label.set(fontweight="bold", color=OURS)
    panel.set_title(title, loc="left", fontweight="bold", fontsize=11.5, pad=20)
    panel.grid(axis="x", color="#E2E2DE", linewidth=0.8, zorder=0)
    panel.spines[:].set_visible(False)
    panel.tick_params(which="both", length=0, colors=INK, labelsize=9.5)


def _limit(panel: Axes, value: float, text: str) -> None:
    panel.axvline(value, color=GOAL, linewidth=1.3, linestyle=(0, (4, 3)), zorder=4)
    panel.annotate(
        text, (value, 1), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
        color=GOAL, ha="center", fontsize=8.5,
    )  # fmt: skip


def _sorted(figures: dict[str, Spread], descending: bool = False) -> dict[str, Spread]:
    return dict(sorted(figures.items(), key=lambda item: item[1].median, reverse=descending))


def draw(results: dict[str, Any], path: Path) -> Path:
    """What there is of: latency, throughput, processor time, ways to call."""
    panels = []
    if add := results.get("add"):
        goal = 2 * add.median_us["raw socket"].median
        title = "One client, add(2, 3), one core: median µs"
        panels.append((title, _sorted(add.median_us), 1, True, (goal, "goal: 2 x raw socket")))
    if crowd := results.get("crowd"):
        rates, costs = crowd.calls_per_s, crowd.cpu_us
        goal = 1.3 * max(rate.median for peer, rate in rates.items() if peer != "objserver")
        title = f"{CLIENTS} client processes, all cores: calls per second"
        panels.append((title, _sorted(rates, True), 0, False, (goal, "goal: 1.3 x the best peer")))
        title = f"{CLIENTS} client processes: server CPU µs per call"
        limit = (
            (costs["thriftpy2"].median * 10 / 16, "goal: 10/16 of thriftpy2")
            if "thriftpy2" in costs
            else None
        )
        panels.append((title, _sorted(costs), 1, True, limit))
    if ways := results.get("ways"):
        rates = {
            "objserver" if way == "single" else f"objserver, {WAY_SAYS[way]}": rate
            for (way, place), rate in ways.calls_per_s.items()
            if place == "pinned"
        }
        panels.append(("One client, one core: calls per second", rates, 0, False, None))
    style = {"svg.hashsalt": "objserver", "svg.fonttype": "path", "font.size": 10, "text.color": INK}
    with plt.rc_context(style):
        rows = (len(panels) + 1) // 2
        figure, grid = plt.subplots(
            rows, 2, figsize=(13, 4.1 * rows), layout="constrained", facecolor=CARD, squeeze=False
        )
        for panel in grid.flat[len(panels) :]:
            panel.set_visible(False)
        for panel, (title, figures, decimals, log, limit) in zip(grid.flat, panels, strict=False):
            panel.set_facecolor(CARD)
            _bars(panel, title, figures, decimals, log)
            if limit:
                _limit(panel, *limit)
        figure.get_layout_engine().set(w_pad=0.2, h_pad=0.2, wspace=0.04, hspace=0.05)
        figure.savefig(path, facecolor=CARD, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)
    return path
