"""What changed between two Git revisions: accuracy, and the test queries that flipped."""

import io
import json
import subprocess
from collections.abc import Mapping
from typing import Any

import pandas as pd

from router.errors import InputError
from router.metrics import gain_interval, mcnemar, p_value, share

METRICS = "metrics/after.json"
PREDICTIONS = "plots/predictions_after.csv"
SEED = 0
"""Of the bootstrap: two comparisons of the same revisions print the same interval."""


def committed(revision: str, path: str) -> str:
    """The text of a file at a Git revision.

    Raises:
        InputError: Git does not know the revision, or the file is not in it.
    """
    try:
        result = subprocess.run(
            ["git", "show", f"{revision}:./{path}"], capture_output=True, text=True, encoding="utf-8"
        )
    except FileNotFoundError:
        raise InputError("git is not installed; install it to compare revisions") from None
    if result.returncode:
        raise InputError(f"revision {revision}: {result.stderr.strip().splitlines()[-1].removeprefix('fatal: ')}")
    return result.stdout


def predictions_at(revision: str) -> pd.DataFrame:
    """The test queries' predictions committed at a revision, by query."""
    frame = pd.read_csv(io.StringIO(committed(revision, PREDICTIONS)), keep_default_na=False)
    frame = frame[frame["agent"] != ""].drop_duplicates("query").set_index("query")
    return frame.assign(right=frame["agent"] == frame["predicted"])


def compare(first: str, second: str) -> str:
    """What changed from one revision to another, as text.

    Raises:
        InputError: a revision has no predictions, or the two share no test query.
    """
    a, b = predictions_at(first), predictions_at(second)
    both = a.index.intersection(b.index, sort=False)
    if both.empty:
        raise InputError(f"{first} and {second} share no test query")
    a, b = a.loc[both], b.loc[both]
    lines = []
    for name, frame in ((first, a), (second, b)):
        s = share(frame["right"].tolist())
        lines.append(
            f"{name}: {s['accuracy']:.1%} right ({s['correct']}/{s['total']}, 95 % interval "
            f"{s['accuracy_low']:.1%} to {s['accuracy_high']:.1%})"
        )
    fixed, broken = both[b["right"] & ~a["right"]], both[a["right"] & ~b["right"]]
    right = a["right"].tolist(), b["right"].tolist()
    low, high = (100 * end for end in gain_interval(*right, SEED))
    lines.append(
        f"{len(fixed)} fixed, {len(broken)} broken on {len(both)} shared queries: "
        f"{100 * (len(fixed) - len(broken)) / len(both):+.1f} points "
        f"(95 % interval {low:+.1f} to {high:+.1f}; {p_value(mcnemar(*right))})"
    )
    for word, queries in (("fixed", fixed), ("broken", broken)):
        for query in map(str, queries):
            was, now, should = (str(f.at[query, c]) for f, c in ((a, "predicted"), (b, "predicted"), (b, "agent")))
            other = f"{was} -> {now}" if word == "fixed" else f"{was} -> {now}, should be {should}"
            lines.append(f"{word}: {query}  [{other}]")
    return "\n".join(lines)


def changes_since(revision: str, metrics: Mapping[str, Any]) -> str:
    """How the fine-tuned model's main numbers differ from those committed at a revision, as Markdown."""
    try:
        before = json.loads(committed(revision, METRICS))
    except InputError:
        return "No numbers are committed yet."
    rows = []
    for name in ("accuracy", "call_accuracy", "macro_f1"):
        change = metrics[name] - before[name]
        if change:
            rows.append(
                f"- {name.replace('_', ' ')}: {before[name]:.4f} -> {metrics[name]:.4f} ({100 * change:+.2f} points)"
            )
    return "\n".join(rows) or "No change."
