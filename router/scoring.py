"""Scoring of calls against labels, as a metric of the `evaluate` package with scikit-learn underneath."""

import json
from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from router.metrics import share

Calls = Sequence[Mapping[str, Any]]
"""`agent`, and `arguments` as JSON text: agents differ in their arguments, and Arrow would fill the gaps with nulls."""


class RoutingAccuracy(evaluate.Metric):  # type: ignore[misc]
    """How well calls match labels. A class of ours, since `evaluate.load` needs the Hub."""

    def _info(self) -> evaluate.MetricInfo:
        call = {"agent": datasets.Value("string"), "arguments": datasets.Value("string")}
        return evaluate.MetricInfo(
            description="Accuracy of routed calls: agent, arguments, both.",
            citation="",
            features=datasets.Features({"predictions": call, "references": call}),
        )

    def _compute(self, predictions: Calls, references: Calls) -> dict[str, Any]:
        """Accuracy overall, by agent and by argument; an argument counts as wrong where the agent is.

        Agents are those that occur among the references; only `confusion` has columns for others that were chosen.
        """
        actual = [row["agent"] for row in references]
        chosen = [row["agent"] for row in predictions]
        wanted = [json.loads(row["arguments"]) for row in references]
        given = [json.loads(row["arguments"]) for row in predictions]
        right = [a == c for a, c in zip(actual, chosen, strict=True)]
        names = sorted(set(actual))
        precision, recall, f1, support = precision_recall_fscore_support(actual, chosen, labels=names, zero_division=0)
        agents, parameters = {}, {}
        for place, name in enumerate(names):
            rows = [row for row, agent in enumerate(actual) if agent == name]
            agents[name] = share([right[row] for row in rows]) | {
                "precision": float(precision[place]),
                "recall": float(recall[place]),
                "f1": float(f1[place]),
            }
            keys = sorted({key for row in rows for key in wanted[row]})
            parameters[name] = {
                key: share([right[row] and given[row].get(key) == wanted[row].get(key) for row in rows]) for key in keys
            }
        columns = names + sorted(set(chosen) - set(names))
        return share(right) | {
            "call_accuracy": float(np.mean([r and g == w for r, g, w in zip(right, given, wanted, strict=True)])),
            "macro_f1": float(np.mean(f1)),
            "chance": 1 / len(names),
            "majority": int(max(support)) / len(actual),
            "agents": agents,
            "parameters": parameters,
            "confusion": {
                name: {column: int(count) for column, count in zip(columns, row, strict=True)}
                for name, row in zip(names, confusion_matrix(actual, chosen, labels=columns), strict=False)
            },
        }


def score(predictions: Calls, references: Calls) -> dict[str, Any]:
    """RoutingAccuracy of the predictions, in the order of the references."""
    # In a folder of its own: evaluate makes one in the user's cache even where everything stays in memory.
    with TemporaryDirectory() as folder:
        metric = RoutingAccuracy(keep_in_memory=True, cache_dir=folder)
        result: dict[str, Any] = metric.compute(predictions=predictions, references=references)
    return result
