"""What simple methods reach on the same split: the majority class, and TF-IDF with logistic regression.

    python stages/baseline.py

Reads data/{train,test}.jsonl and data/out_of_scope.yaml;
writes metrics/baselines.json and plots/predictions_baselines.csv.
"""

import time
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from router.errors import run
from router.examples import Example, read_conversations, read_out_of_scope
from router.metrics import out_of_scope, write_metrics
from router.predictions import as_json
from router.scoring import score


def majority() -> Pipeline:
    return make_pipeline(DummyClassifier(strategy="most_frequent"))


def words() -> Pipeline:
    return make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    )


def characters() -> Pipeline:
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    return make_pipeline(vectorizer, LogisticRegression(C=10, max_iter=1000))


METHODS = {"majority": majority, "tfidf_words": words, "tfidf_characters": characters}


class Baseline:
    """One classifier for the agent, and one for each of its arguments."""

    def __init__(self, method: str, train: list[Example]) -> None:
        self.method = METHODS[method]
        self.agent = self._fit([example.query for example in train], [str(example.agent) for example in train])
        self.arguments: dict[str, dict[str, Pipeline]] = {}
        for name in sorted({str(example.agent) for example in train}):
            rows = [example for example in train if example.agent == name]
            keys = sorted({key for example in rows for key in example.arguments})
            self.arguments[name] = {
                key: self._fit(
                    [example.query for example in rows if key in example.arguments],
                    [as_json({key: example.arguments[key]}) for example in rows if key in example.arguments],
                )
                for key in keys
            }

    def _fit(self, texts: list[str], labels: list[str]) -> Pipeline:
        few = len(set(labels)) < 2  # logistic regression needs two classes
        return (majority() if few else self.method()).fit(texts, labels)

    def predict(self, queries: list[str]) -> list[dict[str, str]]:
        """The call for each query: agent, and arguments as JSON."""
        calls = []
        for query, agent in zip(queries, self.agent.predict(queries), strict=True):
            parts = [model.predict([query])[0] for model in self.arguments[agent].values()]
            arguments = "{" + ", ".join(part[1:-1] for part in parts) + "}"
            calls.append({"agent": str(agent), "arguments": arguments})
        return calls


def main() -> None:
    train = [example for example in read_conversations("data/train.jsonl") if example.agent is not None]
    test = read_conversations("data/test.jsonl")
    queries = [example.query for example in test]
    strangers = [example.query for example in read_out_of_scope("data/out_of_scope.yaml")]
    references = [{"agent": example.agent, "arguments": as_json(dict(example.arguments))} for example in test]
    metrics: dict[str, Any] = {}
    frames = []
    for name in METHODS:
        start = time.perf_counter()
        baseline = Baseline(name, train)
        seconds = time.perf_counter() - start
        calls = baseline.predict(queries)
        metrics[name] = score(calls, references)
        inside, outside = (baseline.agent.predict_proba(texts).max(axis=1) for texts in (queries, strangers))
        metrics[name]["out_of_scope"] = {"auroc": out_of_scope(inside, outside), "total": len(strangers)}
        print(f"{name}: {metrics[name]['correct']}/{len(test)} agents right; trained in {seconds:.2f} s")
        frames.append(
            pd.DataFrame(
                {
                    "method": name,
                    "query": queries,
                    "agent": [row["agent"] for row in references],
                    "predicted": [call["agent"] for call in calls],
                    "arguments": [row["arguments"] for row in references],
                    "predicted_arguments": [call["arguments"] for call in calls],
                }
            )
        )
    write_metrics(metrics, "metrics/baselines.json")
    Path("plots").mkdir(exist_ok=True)
    pd.concat(frames).to_csv("plots/predictions_baselines.csv", index=False, lineterminator="\n")


if __name__ == "__main__":
    run(main)
