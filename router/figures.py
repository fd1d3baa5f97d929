"""The pictures. One style, colours that colour-blind people can tell apart, bytes that do not change between runs."""

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

# Okabe and Ito (2008).
BEFORE, AFTER, BASELINE, CHANCE = "#999999", "#0072B2", "#E69F00", "#D55E00"
STYLE = {
    "figure.dpi": 130,
    "savefig.bbox": "tight",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
}
NAMES = {
    "before": "before",
    "after": "after",
    "majority": "majority class",
    "tfidf_words": "TF-IDF words",
    "tfidf_characters": "TF-IDF characters",
}
Metrics = Mapping[str, Any]


def style() -> AbstractContextManager[None]:
    return plt.rc_context(STYLE)


def short(agent: str) -> str:
    """An agent's name as it fits under a bar."""
    return agent.removesuffix("_agent").replace("_", " ")


def percent(axes: Axes, axis: str = "y") -> None:
    formatter = matplotlib.ticker.PercentFormatter(1.0, decimals=0)
    (axes.yaxis if axis == "y" else axes.xaxis).set_major_formatter(formatter)


def loss(axes: Axes, curve: pd.DataFrame) -> None:
    axes.plot(curve["epoch"], curve["training"], color=BASELINE, marker="o", markersize=3, label="training")
    axes.plot(curve["epoch"], curve["validation"], color=AFTER, marker="s", markersize=3, label="validation")
    best = curve.loc[curve["validation"].idxmin()]
    axes.annotate(
        f"best: epoch {best['epoch']:.0f}",
        (best["epoch"], best["validation"]),
        xytext=(0, 14),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        arrowprops={"arrowstyle": "-", "color": AFTER},
    )
    axes.set(title="Loss by epoch", xlabel="epoch", ylabel="nats a token of the answer", ylim=(0, None))
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axes.legend()


def accuracy(axes: Axes, results: Mapping[str, Metrics]) -> None:
    """Agent accuracy with 95 % intervals."""
    names = list(results)
    values = [results[name]["accuracy"] for name in names]
    errors = [
        [max(0.0, value - results[name]["accuracy_low"]) for name, value in zip(names, values, strict=True)],
        [max(0.0, results[name]["accuracy_high"] - value) for name, value in zip(names, values, strict=True)],
    ]
    colours = [{"before": BEFORE, "after": AFTER}.get(name, BASELINE) for name in names]
    bars = axes.bar([NAMES[name].replace(" ", "\n", 1) for name in names], values, color=colours, width=0.65)
    axes.errorbar(range(len(names)), values, yerr=errors, fmt="none", ecolor="#333333", capsize=4, linewidth=1)
    for bar, value, above in zip(bars, values, errors[1], strict=True):
        axes.text(bar.get_x() + bar.get_width() / 2, value + above + 0.015, f"{value:.1%}", ha="center", fontsize=9)
    axes.axhline(results["after"]["chance"], color=CHANCE, linestyle=":", linewidth=1.2, label="chance")
    axes.set(title="Right agent, with 95 % intervals", ylim=(0, 1.08))
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper left", fontsize=8)
    percent(axes)


def by_agent(axes: Axes, before: Metrics, after: Metrics) -> None:
    agents = list(after["agents"])
    for offset, (name, colour, metrics) in enumerate([("before", BEFORE, before), ("after", AFTER, after)]):
        values = [metrics["agents"][agent]["accuracy"] for agent in agents]
        places = [place + (offset - 0.5) * 0.38 for place in range(len(agents))]
        bars = axes.bar(places, values, width=0.36, color=colour, label=name)
        axes.bar_label(bars, [f"{value:.0%}" for value in values], fontsize=8, padding=2)
    axes.set_xticks(
        range(len(agents)), [f"{short(agent)}\n(n = {after['agents'][agent]['total']})" for agent in agents]
    )
    axes.set(title="Right agent, by agent", ylim=(0, 1.12))
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper left", ncols=2, fontsize=8)
    percent(axes)


def improvement(axes: Axes, before: Metrics, after: Metrics) -> None:
    agents = list(after["agents"])[::-1]
    gains = [after["agents"][agent]["accuracy"] - before["agents"][agent]["accuracy"] for agent in agents]
    bars = axes.barh(
        [short(agent) for agent in agents], gains, color=[AFTER if g >= 0 else CHANCE for g in gains], height=0.55
    )
    axes.bar_label(bars, [f"{100 * gain:+.0f} points" for gain in gains], fontsize=9, padding=3)
    axes.axvline(0, color="#333333", linewidth=0.8)
    axes.set(title="Improvement by agent", xlim=(min(0, *gains) * 1.5 - 0.01, max(0.05, *gains) * 1.35))
    axes.grid(axis="y", visible=False)
    percent(axes, "x")


def confusion(axes: Axes, metrics: Metrics, title: str) -> None:
    names = list(metrics["confusion"])
    counts = [[metrics["confusion"][actual][chosen] for chosen in names] for actual in names]
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, (line, part) in enumerate(zip(counts, shares, strict=True)):
        for column, (count, value) in enumerate(zip(line, part, strict=True)):
            axes.text(column, row, str(count), ha="center", va="center", color="white" if value > 0.5 else "#222222")
    labels = [short(name).replace(" ", "\n") for name in names]
    axes.set_xticks(range(len(names)), labels, fontsize=8)
    axes.set_yticks(range(len(names)), labels, fontsize=8)
    axes.set(title=title, xlabel="chosen", ylabel="right")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def reliability(axes: Axes, tables: Mapping[str, pd.DataFrame]) -> None:
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linestyle="--", linewidth=1, label="perfectly calibrated")
    for name, table in tables.items():
        colour = {"before": BEFORE, "after": AFTER}[name]
        axes.plot(table["confidence"], table["accuracy"], color=colour, linewidth=1.2, label=name)
        axes.scatter(
            table["confidence"], table["accuracy"], s=10 + 150 * table["count"] / table["count"].sum(), color=colour
        )
    axes.set(
        title="Confidence against accuracy", xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.04)
    )
    axes.legend(fontsize=8, loc="upper left")
    percent(axes)
    percent(axes, "x")


def coverage(axes: Axes, curves: Mapping[str, pd.DataFrame]) -> None:
    for name, curve in curves.items():
        axes.plot(curve["coverage"], curve["accuracy"], color={"before": BEFORE, "after": AFTER}[name], label=name)
    axes.set(
        title="Accuracy when only the surest are answered",
        xlabel="share answered",
        ylabel="accuracy",
        xlim=(0, 1),
        ylim=(0, 1.04),
    )
    axes.legend(fontsize=8, loc="lower left")
    percent(axes)
    percent(axes, "x")


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG without the metadata that differ between machines."""
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def draw_all(
    folder: Path,
    curve: pd.DataFrame,
    results: Mapping[str, Metrics],
    reliabilities: Mapping[str, pd.DataFrame],
    coverages: Mapping[str, pd.DataFrame],
) -> Sequence[Path]:
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
            figure, axes = plt.subplots(figsize=(5.6, 3.8), layout="constrained")
            draw(axes)
            written.append(folder / f"{name}.png")
            save(figure, written[-1])
        figure, grid = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
        for axes, draw in zip(grid.flat, pictures.values(), strict=False):
            draw(axes)
        written.append(folder / "overview.png")
        save(figure, written[-1])
    return written
