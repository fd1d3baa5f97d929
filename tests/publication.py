"""A small project that is ready to be published: a tiny model that has learnt its few examples, and its metrics."""

import os
import runpy
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tiny
import torch
from ruamel.yaml import YAML
from torch.nn.utils.rnn import pad_sequence

from router.agents import save_agents
from router.examples import Example, conversation, write_jsonl
from router.functiongemma import DEFAULT_SYSTEM
from router.router import Router, Settings
from router.training import features

BATCH = 4
SIZES = {"train": 24, "validation": 8, "test": 12}
HUB = {"model_repo": "someone/router", "dataset_repo": "someone/queries", "private": True, "dry_run": False}


def trained(examples: list[Example], steps: int = 60) -> Router:
    """A router that has learnt the examples by heart: without the grammar it answers with valid calls too."""
    model, encoder = tiny.model(), tiny.encoder()
    rows = features(examples, encoder, 2048)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for step in range(steps):
        batch = [rows[(step * BATCH + place) % len(rows)] for place in range(BATCH)]
        padded = {
            name: pad_sequence([torch.tensor(row[name]) for row in batch], batch_first=True, padding_value=filler)
            for name, filler in (("input_ids", 0), ("labels", -100))
        }
        model(**padded).loss.backward()  # padding stands at the end, where no causal model sees it
        optimizer.step()
        optimizer.zero_grad()
    return Router(model, tiny.tokenizer(), tiny.AGENTS, Settings(threshold=0.25))


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def stage(name: str) -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(tiny.REPOSITORY / "stages" / f"{name}.py")))


def run_stage(folder: Path, name: str, *arguments: str) -> None:
    """Call a stage's `main` in this process: it saves the seconds in which torch is imported."""
    kept, sys.argv = sys.argv, [name, *arguments]
    try:
        with inside(folder):
            stage(name).main()
    finally:
        sys.argv = kept


def project(folder: Path, **changes: Any) -> Path:
    """The folder of a project after `dvc repro`, as far as publishing reads it; `changes` are those of `hub`."""
    (folder / "data").mkdir(parents=True)
    save_agents(tiny.AGENTS, folder / "agents.yaml")
    made = tiny.examples(sum(SIZES.values()))
    start = 0
    for split, size in SIZES.items():
        rows = [row for row in made[start : start + size] if row.agent or split != "test"]
        write_jsonl([conversation(row, tiny.AGENTS, DEFAULT_SYSTEM) for row in rows], folder / f"data/{split}.jsonl")
        start += size
    (folder / "data/out_of_scope.yaml").write_text("- text: What is the weather?\n- text: Tell me a joke\n")
    YAML().dump(tiny.settings(hub=HUB | changes), folder / "params.yaml")
    trained(made[: SIZES["train"]]).save_pretrained(folder / "models/router")
    tiny.model().save_pretrained(folder / "models/base")
    tiny.tokenizer().save_pretrained(folder / "models/base")
    (folder / "plots").mkdir()
    (folder / "plots/loss.csv").write_text("epoch,training,validation\n1,2.0,1.9\n2,1.0,1.1\n")
    run_stage(folder, "summary")
    run_stage(folder, "evaluation", "before", "models/base")
    run_stage(folder, "evaluation", "after", "models/router")
    run_stage(folder, "baseline")
    run_stage(folder, "compare")
    return folder


def copy_of(folder: Path, to: Path, **changes: Any) -> Path:
    shutil.copytree(folder, to)
    YAML().dump(tiny.settings(hub=HUB | changes), to / "params.yaml")
    return to
