"""The pictures. One style, colours that colour-blind people can tell apart, bytes that do not change between runs."""

import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

# Okabe and Ito (2008).
BEFORE, AFTER, BASELINE, WORSE = "#999999", "#0072B2", "#E69F00", "#D55E00"
INK = "#333333"
STYLE: dict[Any, Any] = {
    "figure.dpi": 160,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 1.4,
}
SIZE = (5.8, 3.9)
"""Inches of one picture; at 160 dots an inch it is as wide as a README."""
NAMES = {
    "before": "before",
    "after": "after",
    "majority": "majority class",
    "tfidf_words": "TF-IDF words",
    "tfidf_characters": "TF-IDF characters",
}
COLOURS = {"before": BEFORE, "after": AFTER}
"""Of a result by name; every other is a baseline."""
Metrics = Mapping[str, Any]


def style() -> AbstractContextManager[None]:
    return plt.rc_context(STYLE)


def short(agent: str) -> str:
    """An agent's name as it fits beside a bar."""
    return agent.removesuffix("_agent").replace("_", " ")


def wrapped(agent: str) -> str:
    """An agent's short name in at most two lines."""
    return "\n".join(textwrap.wrap(short(agent), 18, max_lines=2, placeholder=" …"))


def percent(axes: Axes, axis: str = "y") -> None:
    (axes.yaxis if axis == "y" else axes.xaxis).set_major_formatter(PercentFormatter(1.0, decimals=0))


def legend(axes: Axes, columns: int = 2) -> None:
    """Above the axes at the right, on the title's line, where it can hide nothing."""
    axes.legend(loc="lower right", bbox_to_anchor=(1.01, 0.99), ncols=columns, borderpad=0.2, columnspacing=1.2)


def loss(axes: Axes, curve: pd.DataFrame) -> None:
    """Training and validation loss by epoch; the dotted line is the checkpoint that is kept."""
    axes.plot(curve["epoch"], curve["training"], color=BASELINE, marker="o", markersize=3.5, label="training")
    axes.plot(curve["epoch"], curve["validation"], color=AFTER, marker="s", markersize=3.5, label="validation")
    best = curve["epoch"].tolist()[curve["validation"].argmin()]
    axes.axvline(best, color=INK, linestyle=":", linewidth=1, label=f"best: {best}")
    axes.set(title="Loss by epoch", xlabel="epoch", ylabel="nats a token of the answer", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    legend(axes, 3)


def interval_errors(metrics: Sequence[Metrics]) -> list[list[float]]:
    """Distances from the accuracies down and up to the ends of their intervals."""
    # At 0 and at 100 % rounding can put an end on the wrong side.
    return [
        [max(0.0, m["accuracy"] - m["accuracy_low"]) for m in metrics],
        [max(0.0, m["accuracy_high"] - m["accuracy"]) for m in metrics],
    ]


def accuracy(axes: Axes, results: Mapping[str, Metrics]) -> None:
    """Agent accuracy with 95 % intervals."""
    values = [metrics["accuracy"] for metrics in results.values()]
    errors = interval_errors(list(results.values()))
    colours = [COLOURS.get(name, BASELINE) for name in results]
    axes.bar([NAMES[name].replace(" ", "\n", 1) for name in results], values, color=colours, width=0.65)
    axes.errorbar(range(len(values)), values, yerr=errors, fmt="none", ecolor=INK, capsize=4, linewidth=1)
    for place, (value, above) in enumerate(zip(values, errors[1], strict=True)):
        axes.text(place, value + above + 0.015, f"{value:.1%}", ha="center", va="bottom", fontsize=9)
    axes.axhline(results["after"]["chance"], color=INK, linestyle=":", linewidth=1, label="chance")
    axes.set(title="Right agent, with 95 % intervals", ylim=(0, 1.1), yticks=[0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.grid(axis="x", visible=False)
    axes.tick_params(axis="x", labelsize=9)
    legend(axes)
    percent(axes)


def by_agent(axes: Axes, before: Metrics, after: Metrics) -> None:
    agents = list(after["agents"])
    for offset, name, metrics in ((-0.19, "before", before), (0.19, "after", after)):
        values = [metrics["agents"][agent]["accuracy"] for agent in agents]
        places = [place + offset for place in range(len(agents))]
        bars = axes.barh(places, values, height=0.36, color=COLOURS[name], label=name)
        axes.bar_label(bars, [f"{value:.0%}" for value in values], fontsize=8, padding=2)
    labels = [f"{wrapped(agent)} ({after['agents'][agent]['total']})" for agent in agents]
    axes.set_yticks(range(len(agents)), labels, fontsize=8)
    axes.set(title="By agent (queries)", xlim=(0, 1.12), xticks=[0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    legend(axes)
    percent(axes, "x")


def improvement(axes: Axes, before: Metrics, after: Metrics) -> None:
    agents = list(after["agents"])
    gains = [100 * (after["agents"][agent]["accuracy"] - before["agents"][agent]["accuracy"]) for agent in agents]
    bars = axes.barh(range(len(agents)), gains, color=[AFTER if gain >= 0 else WORSE for gain in gains], height=0.55)
    axes.bar_label(bars, [f"{gain:+.0f}" for gain in gains], fontsize=8, padding=3)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(agents)), [wrapped(agent) for agent in agents], fontsize=8)
    low, high = min(0.0, *gains), max(0.0, *gains)
    room = max(0.15 * (high - low), 1.0)  # for the numbers at the ends of the bars
    axes.set(title="Improvement by agent", xlabel="points of accuracy")
    axes.set_xlim(low - room if low < 0 else -0.1 * room, high + room)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.0f}" if value else "0"))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)


def confusion(axes: Axes, metrics: Metrics, title: str) -> None:
    """Counts and, as colour, shares of the queries of each right agent."""
    table = metrics["confusion"]
    rows = list(table)
    columns = list(table[rows[0]])
    shares = [[table[row][column] / max(1, sum(table[row].values())) for column in columns] for row in rows]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            count, part = table[row][column], shares[y][x]
            text = f"{count}\n{part:.0%}" if count else "0"
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if part > 0.5 else INK)
    many = len(columns) > 3
    axes.set_xticks(
        range(len(columns)),
        [wrapped(column) for column in columns],
        fontsize=8,
        rotation=30 if many else 0,
        ha="right" if many else "center",
        rotation_mode="anchor" if many else "default",
    )
    axes.set_yticks(range(len(rows)), [wrapped(row) for row in rows], fontsize=8)
    axes.set(title=title, xlabel="chosen agent", ylabel="right agent")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def reliability(axes: Axes, tables: Mapping[str, pd.DataFrame]) -> None:
    """Accuracy by bin of confidence; the area of a dot is the share of the queries in its bin."""
    axes.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1, label="ideal")
    for name, table in tables.items():
        sizes = 12 + 200 * table["count"] / table["count"].sum()
        axes.plot(table["confidence"], table["accuracy"], color=COLOURS[name], linewidth=1.2)
        axes.scatter(
            table["confidence"], table["accuracy"], s=sizes, color=COLOURS[name], label=name, clip_on=False, zorder=3
        )
    axes.set(
        title="Confidence against accuracy", xlabel="confidence", ylabel="accuracy", xlim=(0, 1.01), ylim=(0, 1.02)
    )
    legend(axes, 3)
    for handle in axes.get_legend().legend_handles[1:]:  # type: ignore[union-attr]
        handle.set_sizes([30])  # type: ignore[union-attr]
    percent(axes)
    percent(axes, "x")


def coverage(axes: Axes, curves: Mapping[str, pd.DataFrame]) -> None:
    for name, curve in curves.items():
        axes.plot(curve["coverage"], curve["accuracy"], color=COLOURS[name], label=name, clip_on=False)
    axes.set(
        title="Accuracy on the surest messages",
        xlabel="share of messages answered, the surest first",
        ylabel="accuracy",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    legend(axes)
    percent(axes)
    percent(axes, "x")


def learning_curve(axes: Axes, router: Mapping[int, Metrics], baseline: Mapping[int, Metrics], chance: float) -> None:
    """Accuracy with 95 % intervals by number of training queries, on a logarithmic axis."""
    series = (("router", AFTER, "o", 0.98, router), ("TF-IDF characters", BASELINE, "s", 1.02, baseline))
    for name, colour, marker, shift, results in series:
        metrics = list(results.values())
        # Shifted a little apart, so that neither interval hides the other.
        places = [size * shift for size in results]
        values = [m["accuracy"] for m in metrics]
        errors = interval_errors(metrics)
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4.5, "capsize": 3, "linewidth": 1.4}
        axes.errorbar(places, values, yerr=errors, label=name, **look)
    axes.axhline(chance, color=INK, linestyle=":", linewidth=1, label="chance")
    axes.set_xscale("log")
    axes.set_xticks(list(router), [str(size) for size in router])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(title="Learning curve", xlabel="labelled queries to train on", ylabel="right agent", ylim=(0, 1.02))
    legend(axes, 3)
    percent(axes)


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG without the metadata that differ between machines."""
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def draw_learning_curve(
    path: Path, router: Mapping[int, Metrics], baseline: Mapping[int, Metrics], chance: float
) -> None:
    with style():
        figure, axes = plt.subplots(figsize=SIZE, layout="constrained")
        learning_curve(axes, router, baseline, chance)
        save(figure, path)


def draw_all(
    folder: Path,
    curve: pd.DataFrame,
    results: Mapping[str, Metrics],
    reliabilities: Mapping[str, pd.DataFrame],
    coverages: Mapping[str, pd.DataFrame],
) -> list[Path]:
    """Draw every picture into `folder`, and the first six on one page; returns the files."""
    before, after = results["before"], results["after"]
    pictures: dict[str, Any] = {
        "loss": lambda axes: loss(axes, curve),
        "accuracy": lambda axes: accuracy(axes, results),
        "by_agent": lambda axes: by_agent(axes, before, after),
        "improvement": lambda axes: improvement(axes, before, after),
        "confusion_before": lambda axes: confusion(axes, before, "Confusion before"),
        "confusion_after": lambda axes: confusion(axes, after, "Confusion after"),
        "reliability": lambda axes: reliability(axes, reliabilities),
        "coverage": lambda axes: coverage(axes, coverages),
    }
    written = []
    with style():
        for name, draw in pictures.items():
            figure, axes = plt.subplots(figsize=SIZE, layout="constrained")
            draw(axes)
            written.append(folder / f"{name}.png")
            save(figure, written[-1])
        figure, grid = plt.subplots(3, 2, figsize=(2 * SIZE[0], 3 * SIZE[1]), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.14)  # type: ignore[union-attr, call-arg]
        for axes, draw in zip(grid.flat, pictures.values(), strict=False):
            draw(axes)
        written.append(folder / "overview.png")
        save(figure, written[-1])
    return written
