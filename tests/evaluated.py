"""A small evaluated project, made by the code of the stages themselves from answers that a made-up model gave."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd

from router.agents import Agent, load_agents
from router.examples import Example
from router.functiongemma import Answer, Call
from router.metrics import write_metrics
from router.predictions import as_json, table
from router.router import Route
from router.scoring import score

REPOSITORY = Path(__file__).parent.parent
AGENTS = load_agents(REPOSITORY / "agents.yaml")
TAGS = (("terse",), ("long", "question"), ("typo",), ())
TOTAL = 30


def stage(name: str) -> ModuleType:
    """A stage's script as a module."""
    spec = importlib.util.spec_from_file_location(f"stage_{name}", REPOSITORY / "stages" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def examples() -> list[Example]:
    made = []
    for number in range(TOTAL):
        agent = AGENTS[number % len(AGENTS)]
        arguments = {name: p.enum[number % len(p.enum)] for name, p in agent.parameters.items()}
        query = f"message {number} with *stars*, a <tag> and a | bar"
        made.append(
            Example(query=query, agent=agent.name, arguments=arguments, family=f"f{number}", tags=TAGS[number % 4])
        )
    return made


def route(example: Example, agent: Agent, confidence: float) -> Route:
    """A route to `agent`, with the example's arguments where they are the agent's."""
    first = {name: parameter.enum[0] for name, parameter in agent.parameters.items()}
    arguments = dict(example.arguments) if example.agent == agent.name else first
    certain = dict.fromkeys(arguments, 1.0)
    return Route(agent.name, arguments, confidence, 0.9, confidence < 0.5, certain, {agent.name: confidence}, False)


def routes(wrong: set[int]) -> list[Route]:
    """Right but for the given queries, which go to the next agent with less confidence."""
    return [
        route(example, AGENTS[(number + (number in wrong)) % len(AGENTS)], 0.45 + number / 60 - 0.3 * (number in wrong))
        for number, example in enumerate(examples())
    ]


def project(folder: Path, wrong_before: set[int], wrong_after: set[int]) -> Path:
    """A folder with everything that `stages/compare.py` reads."""
    evaluation = stage("evaluation")
    asked = examples()
    strangers = [Example(query=f"stranger {n}", agent=None, family=f"s{n}") for n in range(6)]
    (folder / "plots").mkdir(parents=True)
    for name, wrong in (("before", wrong_before), ("after", wrong_after)):
        inside, outside = routes(wrong), [route(stranger, AGENTS[0], 0.4) for stranger in strangers]
        answers = [
            Answer((Call(r.agent, dict(r.arguments)),), "", None) if number % 5 else Answer((), "", "broken")
            for number, r in enumerate(inside)
        ]
        metrics = evaluation.measure(inside, outside, asked, 0.5)
        metrics["free"] = evaluation.free_metrics(answers, asked, AGENTS)
        write_metrics(metrics, folder / f"metrics/{name}.json")
        frame = table([*asked, *strangers], [*inside, *outside])
        frame.to_csv(folder / f"plots/predictions_{name}.csv", index=False, lineterminator="\n")
    references = [{"agent": example.agent, "arguments": as_json(dict(example.arguments))} for example in asked]
    always = [{"agent": AGENTS[0].name, "arguments": "{}"}] * TOTAL
    baseline = score(always, references) | {"out_of_scope": {"auroc": 0.5, "total": 6}}
    write_metrics(
        dict.fromkeys(("majority", "tfidf_words", "tfidf_characters"), baseline), folder / "metrics/baselines.json"
    )
    part = {"total": TOTAL, "out_of_scope": 0, "agents": {agent.name: TOTAL // 3 for agent in AGENTS}}
    nearest = {"largest": 0.5, "mean": 0.25}
    data = {"splits": {"train": part, "test": part}, "nearest_train_test": nearest, "unseen_values": ["a.b=c"]}
    write_metrics(data, folder / "metrics/data.json")
    losses = {"epoch": [1, 2, 3], "training": [2.0, 1.0, 0.5], "validation": [2.1, 1.3, 1.4]}
    pd.DataFrame(losses).to_csv(folder / "plots/loss.csv", index=False)
    curve = {"queries": [12, 23, 46], "router": [0.5, 0.7, 0.9], "tfidf_characters": [0.4, 0.6, 0.7]}
    pd.DataFrame(curve).to_csv(folder / "plots/curve.csv", index=False)
    shutil.copy(REPOSITORY / "params.yaml", folder)
    return folder


def run(folder: Path, *command: str) -> str:
    """Run Python in `folder`; what it printed. `router` is this repository's."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def compare(folder: Path) -> Path:
    run(folder, str(REPOSITORY / "stages/compare.py"))
    return folder


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)
