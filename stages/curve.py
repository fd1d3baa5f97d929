"""The learning curve: how many labelled queries the router needs, beside TF-IDF on the same ones (curve/dvc.yaml).

    python stages/curve.py

Reads data/queries.jsonl, data/negatives.yaml, models/base; writes metrics/curve.json, plots/curve.csv, plots/curve.png.
Runs the pipeline's own stages split, train and baseline in a folder for each size. The seed makes every training set
part of the next, with one validation set for all; all are measured on what the largest leaves over. Interrupted, it
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
from router.examples import read_conversations, read_queries
from router.figures import draw_learning_curve
from router.metrics import read_metrics, share, write_metrics
from router.params import Params, load_params
from router.router import Router
from router.training import inputs_key

SIZES = (12, 23, 46, 92, 184, 368)
SHARED = ("data/queries.jsonl", "data/negatives.yaml", "data/out_of_scope.yaml", "models/base")
BASELINE = "tfidf_characters"


def usable(sizes: tuple[int, ...], queries: int, validation: int) -> list[int]:
    """The sizes that leave at least as many queries for the test as they take for training.

    Raises:
        InputError: not even the smallest does.
    """
    fitting = [size for size in sizes if validation + 2 * size <= queries]
    if not fitting:
        raise InputError(f"data/queries.jsonl: {queries} queries are too few for a learning curve; add some")
    return fitting


def prepare(folder: Path, size: int, params: Params) -> None:
    """A project folder that differs from this one in `data.train` alone; its inputs are links."""
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
    queries = read_queries("data/queries.jsonl", load_agents(params.agents))
    sizes = usable(SIZES, sum(example.variant == 0 for example in queries), params.data.validation)
    inputs = [Path("data/queries.jsonl"), *sorted(path for path in Path("models/base").iterdir() if path.is_file())]
    root = Path(".checkpoints") / f"curve-{inputs_key(inputs, params.model_dump(exclude={'hub', 'embedded'}))}"
    folders = {size: root / str(size) for size in sizes}
    for size, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder, size, params)
        run_stage(folder, "split")
    results: dict[str, dict[int, Any]] = {"router": {}, BASELINE: {}}
    for size, folder in folders.items():
        if size != sizes[-1]:
            shutil.copyfile(folders[sizes[-1]] / "data/test.jsonl", folder / "data/test.jsonl")
        done = folder / "metrics/router.json"
        if not done.exists():
            print(f"{size} training queries")
            run_stage(folder, "train")
            run_stage(folder, "baseline")
            write_metrics(measure(folder), done)
        results["router"][size] = read_metrics(done)
        results[BASELINE][size] = read_metrics(folder / "metrics/baselines.json")[BASELINE]
    chance = results[BASELINE][sizes[0]]["chance"]
    kept = ("accuracy", "accuracy_low", "accuracy_high", "correct", "total")
    curves = {name: {size: {key: m[key] for key in kept} for size, m in rows.items()} for name, rows in results.items()}
    write_metrics(
        {name: {str(size): m for size, m in rows.items()} for name, rows in curves.items()}, "metrics/curve.json"
    )
    table = pd.DataFrame({name: {size: m["accuracy"] for size, m in rows.items()} for name, rows in curves.items()})
    Path("plots").mkdir(exist_ok=True)
    table.round(4).to_csv("plots/curve.csv", index_label="queries", lineterminator="\n")
    draw_learning_curve(Path("plots/curve.png"), curves["router"], curves[BASELINE], chance)
    shutil.rmtree(root)
    print(table.map("{:.1%}".format).to_string())


if __name__ == "__main__":
    run(main)
