"""Measure a model on the test split and on messages that no agent fits.

    python stages/evaluation.py before models/base
    python stages/evaluation.py after models/router

Reads the model, data/test.jsonl and data/out_of_scope.yaml; writes metrics/NAME.json and plots/predictions_NAME.csv.
"""

import sys
from collections import Counter
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from router.agents import Agent, load_agents
from router.errors import InputError, run
from router.examples import Example, read_conversations, read_out_of_scope
from router.functiongemma import Answer
from router.metrics import at_coverages, calibration, out_of_scope, share, slices, write_metrics
from router.params import load_params
from router.predictions import as_json, table
from router.router import AGENTS_FILE, Route, Router, Settings
from router.scoring import score

TEST = "data/test.jsonl"
OUT_OF_SCOPE = "data/out_of_scope.yaml"
ERRORS = ("broken_syntax", "missing_argument", "no_call", "several_calls", "unknown_agent", "unknown_value")
"""What can be wrong with a freely generated answer; an argument that the agent does not have is an unknown value."""


def kind_of_answer(answer: Answer, agents: list[Agent]) -> str:
    """`valid` for a valid call, or which of ERRORS it is."""
    if answer.error:
        return "broken_syntax"
    if len(answer.calls) != 1:
        return "several_calls" if answer.calls else "no_call"
    call = answer.calls[0]
    agent = next((agent for agent in agents if agent.name == call.name), None)
    if agent is None:
        return "unknown_agent"
    if any(p.required and name not in call.arguments for name, p in agent.parameters.items()):
        return "missing_argument"
    return "unknown_value" if agent.problem_with(call.arguments) else "valid"


def free_metrics(answers: list[Answer], examples: list[Example], agents: list[Agent]) -> dict[str, object]:
    """Accuracy and validity of unconstrained greedy generation."""
    kinds = Counter(kind_of_answer(answer, agents) for answer in answers)
    named = [answer.calls[0].name if len(answer.calls) == 1 else None for answer in answers]
    right = [name == example.agent for name, example in zip(named, examples, strict=True)]
    errors = {kind: kinds[kind] for kind in ERRORS}
    return share(right) | {"valid_rate": kinds["valid"] / len(answers), "errors": errors}


def measure(routes: list[Route], outside: list[Route], examples: list[Example], threshold: float) -> dict[str, object]:
    """The metrics of constrained routing."""
    accuracy = score(
        predictions=[{"agent": route.agent, "arguments": as_json(route.arguments)} for route in routes],
        references=[{"agent": example.agent, "arguments": as_json(example.arguments)} for example in examples],
    )
    right = [route.agent == example.agent for route, example in zip(routes, examples, strict=True)]
    certainty = [route.score for route in routes]
    answered = [hit for hit, route in zip(right, routes, strict=True) if not route.abstained]
    return accuracy | {
        "calibration": calibration([route.confidence for route in routes], right),
        "coverage": at_coverages(certainty, right),
        "slices": slices([example.tags for example in examples], right),
        "out_of_scope": {
            "auroc": out_of_scope(certainty, [route.score for route in outside]),
            "total": len(outside),
            "abstained": sum(route.abstained for route in outside) / len(outside),
        },
        "abstention": {
            "threshold": threshold,
            "coverage": len(answered) / len(routes),
            "accuracy": sum(answered) / len(answered) if answered else 0.0,
        },
    }


def main() -> None:
    if len(sys.argv) != 3:
        raise InputError("usage: python stages/evaluation.py NAME MODEL")
    name, model = sys.argv[1:]
    params = load_params()
    agents = load_agents(params.agents)
    settings = Settings(params.router.system, params.router.max_query_tokens)
    trained = (Path(model) / AGENTS_FILE).exists()
    router = Router.from_pretrained(model) if trained else Router.from_pretrained(model, agents, settings=settings)
    examples, strangers = read_conversations(TEST), read_out_of_scope(OUT_OF_SCOPE)
    queries = [example.query for example in examples]
    routes = list(tqdm(router.route_many(queries), "routing", len(queries)))
    outside = [*router.route_many(example.query for example in strangers)]
    answers = list(tqdm(router.generate(queries), "free generation", len(queries)))
    metrics = measure(routes, outside, examples, router.settings.threshold)
    metrics["free"] = free_metrics(answers, examples, agents)
    write_metrics(metrics, f"metrics/{name}.json")
    frame = table([*examples, *strangers], [*routes, *outside])
    frame["free"] = [kind_of_answer(answer, agents) for answer in answers] + [None] * len(strangers)
    Path("plots").mkdir(exist_ok=True)
    pd.DataFrame(frame).to_csv(f"plots/predictions_{name}.csv", index=False, lineterminator="\n")
    print(f"{name}: {metrics['correct']}/{metrics['total']} agents right, {metrics['call_accuracy']:.1%} whole calls")


if __name__ == "__main__":
    run(main)
