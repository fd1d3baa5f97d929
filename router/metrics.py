"""Statistics of predictions, and metric files. Every share is a fraction in [0, 1]. Knows no models."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.metrics import brier_score_loss, roc_auc_score

from router.errors import InputError

DIGITS = 4
"""Digits behind the point in every metric file."""
COVERAGES = (0.5, 0.8, 0.9, 1.0)
BINS = 10
"""Bins of equal width for calibration."""


def wilson(correct: int, total: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share (Wilson, 1927)."""
    if total == 0:
        return 0.0, 1.0
    interval = binomtest(correct, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def share(correct: Sequence[bool]) -> dict[str, Any]:
    """Accuracy with its interval and counts."""
    hits, total = int(sum(correct)), len(correct)
    low, high = wilson(hits, total)
    return {
        "accuracy": hits / total if total else 0.0,
        "accuracy_low": low,
        "accuracy_high": high,
        "correct": hits,
        "total": total,
    }


def calibration(confidence: Sequence[float], correct: Sequence[bool]) -> dict[str, float]:
    """Expected calibration error over equal-width bins (Naeini et al., 2015) and Brier score of the chosen agent."""
    table = reliability(confidence, correct)
    gap = (table["confidence"] - table["accuracy"]).abs()
    return {
        "ece": float((gap * table["count"]).sum() / table["count"].sum()),
        "brier": float(brier_score_loss(list(correct), list(confidence), pos_label=True)),
    }


def reliability(confidence: Sequence[float], correct: Sequence[bool]) -> pd.DataFrame:
    """Mean confidence and accuracy by bin of confidence; empty bins are left out."""
    frame = pd.DataFrame({"confidence": list(confidence), "accuracy": [float(c) for c in correct]})
    bins = np.minimum((frame["confidence"] * BINS).astype(int), BINS - 1)
    grouped = frame.groupby(bins)
    return grouped.mean().assign(count=grouped.size()).reset_index(drop=True)


def risk_coverage(score: Sequence[float], correct: Sequence[bool]) -> pd.DataFrame:
    """Accuracy of the most certain messages, for every share of messages that is answered."""
    order = np.argsort(-np.asarray(score), kind="stable")
    hits = np.asarray(correct, dtype=float)[order].cumsum()
    answered = np.arange(1, len(hits) + 1)
    return pd.DataFrame({"coverage": answered / len(hits), "accuracy": hits / answered})


def at_coverages(score: Sequence[float], correct: Sequence[bool]) -> dict[str, float]:
    """Accuracy where only the most certain 50, 80, 90 and 100 % are answered."""
    curve = risk_coverage(score, correct)
    return {
        f"at_{round(coverage * 100)}": float(curve["accuracy"].iloc[math.ceil(coverage * len(curve)) - 1])
        for coverage in COVERAGES
    }


def out_of_scope(inside: Sequence[float], outside: Sequence[float]) -> float:
    """AUROC: how often a message in scope has a higher score than one out of scope."""
    labels = [1] * len(inside) + [0] * len(outside)
    return float(roc_auc_score(labels, [*inside, *outside]))


def choose_threshold(scores: Sequence[float], correct: Sequence[bool], target_precision: float) -> float:
    """The lowest threshold at which the messages at or above it reach the target precision.

    Where no threshold reaches it, the highest score: then nearly everything is left to a person.
    """
    curve = risk_coverage(scores, correct)
    reached = np.flatnonzero(curve["accuracy"].to_numpy() >= target_precision)
    ordered = sorted(scores, reverse=True)
    return float(ordered[reached[-1]] if len(reached) else ordered[0])


def slices(tags: Sequence[Sequence[str]], correct: Sequence[bool]) -> dict[str, dict[str, Any]]:
    """Accuracy on the queries of each tag."""
    names = sorted({tag for row in tags for tag in row})
    return {name: share([c for row, c in zip(tags, correct, strict=True) if name in row]) for name in names}


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """p-value of the exact two-sided McNemar test: so uneven a split of the changed queries by luck alone."""
    fixed = sum(a and not b for b, a in zip(before, after, strict=True))
    broken = sum(b and not a for b, a in zip(before, after, strict=True))
    return float(binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0


def p_value(p: float) -> str:
    """A p-value as it is reported: metric files round it to DIGITS, and a rounded 0 is no probability."""
    return f"McNemar p < {10**-DIGITS:.{DIGITS}f}" if p < 10**-DIGITS else f"McNemar p = {p:.{DIGITS}f}"


def gain_interval(
    before: Sequence[bool], after: Sequence[bool], seed: int, samples: int = 10_000
) -> tuple[float, float]:
    """95 % interval of the gain in accuracy by paired bootstrap over queries."""
    difference = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    rng = np.random.default_rng(seed)
    means = [difference[rng.integers(0, len(difference), len(difference))].mean() for _ in range(samples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def rounded(value: Any) -> Any:
    """Numbers rounded to DIGITS, through nested dictionaries and lists."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return round(value, DIGITS) if isinstance(value, float) else value


def write_metrics(metrics: dict[str, Any], path: str | Path) -> None:
    """JSON that reviews well in Git: rounded, keys sorted, newline at the end."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rounded(metrics), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    Path(path).write_text(text, encoding="utf-8")


def read_metrics(path: str | Path) -> dict[str, Any]:
    """Read a metric file.

    Raises:
        InputError: there is no such file, or it is not JSON.
    """
    try:
        values: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); run `dvc repro` first") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from None
    return values
