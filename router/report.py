"""The report for people, in Markdown, every number read from the metric files."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd

from router.figures import NAMES, short
from router.metrics import p_value

Metrics = Mapping[str, Any]


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first aligned right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def result_table(results: Mapping[str, Metrics]) -> str:
    """Before, after and every baseline: the table of README and report."""
    rows = []
    for name, metrics in results.items():
        label = f"**{NAMES[name]}**" if name == "after" else NAMES[name]
        interval = f"{percent(metrics['accuracy_low'])} to {percent(metrics['accuracy_high'])}"
        count = f"{metrics['correct']} / {metrics['total']}"
        rows.append(
            [
                label,
                percent(metrics["accuracy"]),
                interval,
                count,
                percent(metrics["macro_f1"]),
                percent(metrics["call_accuracy"]),
                f"{metrics['out_of_scope']['auroc']:.3f}",
            ]
        )
    header = ["", "right agent", "95 % interval", "count", "macro F1", "whole call right", "out-of-scope AUROC"]
    return markdown_table(header, rows)


def agent_table(results: Mapping[str, Metrics]) -> str:
    agents = results["after"]["agents"]
    rows = []
    for agent, values in agents.items():
        shares = [percent(metrics["agents"][agent]["accuracy"]) for metrics in results.values()]
        rows.append([short(agent), str(values["total"]), *shares, percent(values["precision"]), percent(values["f1"])])
    return markdown_table(["agent", "queries", *(NAMES[name] for name in results), "precision after", "F1 after"], rows)


def parameter_table(results: Mapping[str, Metrics]) -> str:
    rows = []
    for agent, parameters in results["after"]["parameters"].items():
        for parameter in parameters:
            values = [percent(m["parameters"][agent][parameter]["accuracy"]) for m in results.values()]
            rows.append([f"{short(agent)}: `{parameter}`", *values])
    return markdown_table(["argument", *(NAMES[name] for name in results)], rows)


def slice_table(before: Metrics, after: Metrics) -> str:
    rows = [
        [tag, str(values["total"]), percent(before["slices"][tag]["accuracy"]), percent(values["accuracy"])]
        for tag, values in after["slices"].items()
    ]
    return markdown_table(["tag", "queries", "before", "after"], rows)


def quoted(query: str) -> str:
    """A query as Markdown shows it as it was typed, in one line."""
    return re.sub(r"([\\`*_<>\[\]#|~])", r"\\\1", " ".join(query.split()))


def worst_confusions(predictions: pd.DataFrame, count: int = 4, examples: int = 3) -> str:
    """The most frequent mistakes with their counts, each with the queries that were mistaken most confidently."""
    wrong = predictions[(predictions["agent"] != "") & ~predictions["right"]]
    parts = []
    pairs = Counter(zip(wrong["agent"], wrong["predicted"], strict=True))
    for (agent, predicted), number in pairs.most_common(count):
        rows = wrong[(wrong["agent"] == agent) & (wrong["predicted"] == predicted)]
        rows = rows.sort_values("confidence", ascending=False, kind="stable").head(examples)
        quotes = "\n".join(
            f"  - {quoted(query)} ({confidence:.2f})"
            for query, confidence in zip(rows["query"], rows["confidence"], strict=True)
        )
        parts.append(f"- **{short(agent)}** taken for **{short(predicted)}**: {number}\n{quotes}")
    return "\n".join(parts) or "None."


def report(results: Mapping[str, Metrics], comparison: Metrics, predictions: pd.DataFrame, data: Metrics) -> str:
    """The whole report."""
    before, after = results["before"], results["after"]
    free = after["free"]
    errors = ", ".join(f"{kind.replace('_', ' ')} {count}" for kind, count in free["errors"].items() if count) or "none"
    split = data["splits"]
    return f"""# Report

{result_table(results)}

Chance is {percent(after["chance"])}, always naming the most frequent agent {percent(after["majority"])}.
Fine-tuning gains {100 * comparison["accuracy_gain"]:.1f} points (95 % interval {
        100 * comparison["accuracy_gain_low"]:.1f} to \
{100 * comparison["accuracy_gain_high"]:.1f}, paired bootstrap; exact {p_value(comparison["mcnemar_p"])}):
{comparison["fixed"]} queries fixed, {comparison["broken"]} broken (`plots/flips.csv`).

![overview](../plots/overview.png)

## By agent

{agent_table(results)}

## By argument

Wrong where the agent is wrong.

{parameter_table(results)}

## By kind of query

{slice_table(before, after)}

## Certainty

| | before | after |
| --- | ---: | ---: |
| expected calibration error | {before["calibration"]["ece"]:.3f} | {after["calibration"]["ece"]:.3f} |
| Brier score | {before["calibration"]["brier"]:.3f} | {after["calibration"]["brier"]:.3f} |
| accuracy on the surest 50 % | {percent(before["coverage"]["at_50"])} | {percent(after["coverage"]["at_50"])} |
| accuracy on the surest 80 % | {percent(before["coverage"]["at_80"])} | {percent(after["coverage"]["at_80"])} |
| accuracy on the surest 90 % | {percent(before["coverage"]["at_90"])} | {percent(after["coverage"]["at_90"])} |

At the threshold of {after["abstention"]["threshold"]:.3f} the router answers {
        percent(after["abstention"]["coverage"])
    } of the messages in
scope, {percent(after["abstention"]["accuracy"])} of them right, and abstains on {
        percent(after["out_of_scope"]["abstained"])
    } of
{after["out_of_scope"]["total"]} messages out of scope.

![confidence](../plots/reliability.png) ![coverage](../plots/coverage.png)

## Without the grammar

Free greedy generation names the right agent in {percent(free["accuracy"])} (before: {
        percent(before["free"]["accuracy"])
    }); \
{percent(free["valid_rate"])} of its answers are valid calls (before: {percent(before["free"]["valid_rate"])}).
Errors after: {errors}.

## Most frequent mistakes

{worst_confusions(predictions)}

## Data

{
        markdown_table(
            ["split", "queries", "out of scope", *(short(agent) for agent in split["train"]["agents"])],
            [
                [name, str(part["total"]), str(part["out_of_scope"]), *(str(n) for n in part["agents"].values())]
                for name, part in split.items()
            ],
        )
    }

Nearest training query to a test query: similarity {data["nearest_train_test"]["largest"]:.2f} at most, \
{data["nearest_train_test"]["mean"]:.2f} on average.
Values never seen in training: {", ".join(data["unseen_values"]) or "none"}.

What changed against the committed numbers stands in `changes.md` beside this file, which is made anew by every run.
"""
