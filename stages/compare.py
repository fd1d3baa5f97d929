"""Put before, after and the baselines side by side: numbers, pictures, report.

    python stages/compare.py

Reads metrics/{before,after,baselines,data}.json, plots/predictions_{before,after}.csv and plots/loss.csv;
writes metrics/comparison.json, metrics/report.md, plots/*.png, plots/flips.csv and the tables behind DVC's plots.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from router.errors import run
from router.figures import NAMES, draw_all, short
from router.metrics import gain_interval, mcnemar, read_metrics, reliability, risk_coverage, write_metrics
from router.params import load_params
from router.predictions import read_table
from router.report import report
from router.revisions import changes_since

PLOTS = Path("plots")


def flips(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """The queries whose agent was wrong before and is right after (fixed), or the other way round (broken)."""
    changed = after["right"] != before["right"]
    return pd.DataFrame(
        {
            "change": after["right"].map({True: "fixed", False: "broken"}),
            "query": after["query"],
            "agent": after["agent"],
            "before": before["predicted"],
            "after": after["predicted"],
            "confidence_before": before["confidence"],
            "confidence_after": after["confidence"],
        }
    )[changed].sort_values(["change", "query"], kind="stable")


def tables_of_plots(
    results: dict[str, dict[str, Any]],
    inside: dict[str, pd.DataFrame],
    curves: dict[str, pd.DataFrame],
    calibrations: dict[str, pd.DataFrame],
) -> dict[str, pd.DataFrame]:
    """The data of the pictures, once more for `dvc plots`, which compares revisions."""
    before, after = (results[name]["agents"] for name in ("before", "after"))
    by_agent = [
        {
            "agent": short(agent),
            "before": before[agent]["accuracy"],
            "after": after[agent]["accuracy"],
            "gain": after[agent]["accuracy"] - before[agent]["accuracy"],
        }
        for agent in after
    ]
    return {
        "accuracy": pd.DataFrame({"model": NAMES[name], "accuracy": m["accuracy"]} for name, m in results.items()),
        "by_agent": pd.DataFrame(by_agent),
        "confusion": pd.DataFrame(
            {"actual": inside["after"]["agent"], **{name: table["predicted"] for name, table in inside.items()}}
        ).map(short),
        "coverage": pd.DataFrame(
            {"coverage": curves["after"]["coverage"], **{name: curve["accuracy"] for name, curve in curves.items()}}
        ).iloc[:: max(1, len(curves["after"]) // 100)],
        "reliability": calibrations["after"],
    }


def main() -> None:
    params = load_params()
    before_metrics, after_metrics = read_metrics("metrics/before.json"), read_metrics("metrics/after.json")
    baselines = read_metrics("metrics/baselines.json")
    results = {
        "before": before_metrics,
        "after": after_metrics,
        **{name: baselines[name] for name in NAMES if name not in ("before", "after")},
    }
    tables = {name: read_table(PLOTS / f"predictions_{name}.csv") for name in ("before", "after")}
    inside = {name: table[table["agent"] != ""] for name, table in tables.items()}
    right = {name: table["right"].tolist() for name, table in inside.items()}

    low, high = gain_interval(right["before"], right["after"], params.seed)
    changed = flips(inside["before"], inside["after"])
    comparison = {
        "accuracy_before": before_metrics["accuracy"],
        "accuracy_after": after_metrics["accuracy"],
        "accuracy_gain": after_metrics["accuracy"] - before_metrics["accuracy"],
        "accuracy_gain_low": low,
        "accuracy_gain_high": high,
        "call_accuracy_gain": after_metrics["call_accuracy"] - before_metrics["call_accuracy"],
        "mcnemar_p": mcnemar(right["before"], right["after"]),
        "fixed": int((changed["change"] == "fixed").sum()),
        "broken": int((changed["change"] == "broken").sum()),
        "baselines": {
            name: {
                "accuracy": metrics["accuracy"],
                "call_accuracy": metrics["call_accuracy"],
                "after_minus_baseline": after_metrics["accuracy"] - metrics["accuracy"],
            }
            for name, metrics in baselines.items()
        },
    }
    write_metrics(comparison, "metrics/comparison.json")
    changed.to_csv(PLOTS / "flips.csv", index=False, lineterminator="\n")

    curves = {name: risk_coverage(table["score"].tolist(), right[name]) for name, table in inside.items()}
    calibrations = {name: reliability(table["confidence"].tolist(), right[name]) for name, table in inside.items()}
    for name, frame in tables_of_plots(results, inside, curves, calibrations).items():
        frame.round(4).to_csv(PLOTS / f"{name}.csv", index=False, lineterminator="\n")
    draw_all(PLOTS, pd.read_csv(PLOTS / "loss.csv"), results, calibrations, curves)

    text = report(results, comparison, tables["after"], read_metrics("metrics/data.json"))
    Path("metrics/report.md").write_text(text, encoding="utf-8")
    # Not in Git: it would differ after every commit.
    Path("metrics/changes.md").write_text(changes_since("HEAD", after_metrics), encoding="utf-8")
    gain = f"{before_metrics['accuracy']:.1%} -> {after_metrics['accuracy']:.1%}"
    print(f"accuracy {gain}; metrics/report.md, plots/overview.png")


if __name__ == "__main__":
    run(main)
