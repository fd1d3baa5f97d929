"""The learning curve: how many labelled queries the router needs, beside TF-IDF on the same ones (`make curve`).

    python stages/curve.py

Reads data/queries.jsonl, data/negatives.yaml, models/base; writes metrics/curve.json, plots/curve.csv, plots/curve.png.
The split is the pipeline's own, made for the largest size; each smaller training set is part of the next, and all are
validated and tested on the same queries. Runs the stages train and baseline in a folder for each size. Interrupted, it
goes on from where it was.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from router.agents import load_agents
from router.errors import InputError, run
from router.examples import conversation, read_conversations, read_queries, write_jsonl
from router.figures import draw_learning_curve
from router.metrics import read_metrics, share, write_metrics
from router.params import Params, load_params
from router.router import Router
from router.splits import nested
from router.training import inputs_key

SIZES = (12, 23, 46, 92, 184, 368)
SHARED = ("data/negatives.yaml", "data/out_of_scope.yaml", "models/base")
BASELINE = "tfidf_characters"
METRICS = "metrics/curve.json"


def usable(sizes: tuple[int, ...], queries: int, validation: int) -> list[int]:
    """The sizes that leave at least as many queries for the test as they take for training.

    Raises:
        InputError: not even the smallest does.
    """
    fitting = [size for size in sizes if validation + 2 * size <= queries]
    if not fitting:
        raise InputError(f"data/queries.jsonl: {queries} queries are too few for a learning curve; add some")
    return fitting


def prepare(folder: Path, params: Params, size: int) -> None:
    """A project folder whose inputs are links to this one's, with `data.train` set to `size`."""
    for name in (*SHARED, params.agents, params.data.test_source):
        link = folder / name
        if Path(name).exists() and not Path(name).is_absolute() and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(name).absolute())
    with open("params.yaml", encoding="utf-8") as file:
        values = YAML().load(file)
    values["data"]["train"] = size
    with open(folder / "params.yaml", "w", encoding="utf-8") as file:
        YAML().dump(values, file)


def run_stage(folder: Path, name: str) -> None:
    """Run a stage's script in `folder`; its own words tell what failed.

    Raises:
        InputError: it failed.
    """
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    script = Path("stages", f"{name}.py").absolute()
    if subprocess.run([sys.executable, str(script)], cwd=folder, env=environment).returncode:
        raise InputError(f"stage {name} failed in {folder}; what is done is kept, run the same command to go on")


def measure(folder: Path) -> dict[str, Any]:
    """Share of the test queries that the router of `folder` sends to the right agent."""
    router = Router.from_pretrained(folder / "models/router")
    examples = read_conversations(folder / "data/test.jsonl")
    routes = router.route_many(example.query for example in examples)
    return share([route.agent == example.agent for route, example in zip(routes, examples, strict=True)])


def main() -> None:
    params = load_params()
    agents = load_agents(params.agents)
    queries = [example for example in read_queries("data/queries.jsonl", agents) if example.variant == 0]
    sizes = usable(SIZES, len(queries), params.data.validation)
    inputs = [Path("data/queries.jsonl"), *sorted(path for path in Path("models/base").iterdir() if path.is_file())]
    root = Path(".checkpoints") / f"curve-{inputs_key(inputs, params.model_dump(exclude={'hub', 'embedded'}))}"
    whole = root / "split"
    (whole / "data").mkdir(parents=True, exist_ok=True)
    write_jsonl((example.model_dump() for example in queries), whole / "data/queries.jsonl")  # no rewritten copies
    prepare(whole, params, sizes[-1])
    run_stage(whole, "split")
    train = read_conversations(whole / "data/train.jsonl")
    results: dict[str, dict[int, Any]] = {"router": {}, BASELINE: {}}
    for size in sizes:
        folder = root / str(size)
        prepare(folder, params, size)
        for name in ("validation", "test"):
            shutil.copyfile(whole / f"data/{name}.jsonl", folder / f"data/{name}.jsonl")
        rows = (conversation(example, agents, params.router.system) for example in nested(train, size))
        write_jsonl(rows, folder / "data/train.jsonl")
        done = folder / "metrics/router.json"
        if not done.exists():
            print(f"{size} training queries")
            run_stage(folder, "train")
            run_stage(folder, "baseline")
            write_metrics(measure(folder), done)
        results["router"][size] = read_metrics(done)
        baseline = read_metrics(folder / "metrics/baselines.json")[BASELINE]
        results[BASELINE][size] = {key: baseline[key] for key in results["router"][size]}
    write_metrics({name: {str(size): m for size, m in rows.items()} for name, rows in results.items()}, METRICS)
    table = pd.DataFrame({name: {size: m["accuracy"] for size, m in rows.items()} for name, rows in results.items()})
    Path("plots").mkdir(exist_ok=True)
    table.round(4).to_csv("plots/curve.csv", index_label="queries", lineterminator="\n")
    draw_learning_curve(Path("plots/curve.png"), results["router"], results[BASELINE], baseline["chance"])
    shutil.rmtree(root)
    print(table.map("{:.1%}".format).to_string())


if __name__ == "__main__":
    run(main)
