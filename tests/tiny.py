"""Agents, examples and whole project folders for the tests of training."""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from conftest import REPOSITORY, tiny_model
from ruamel.yaml import YAML
from transformers import Gemma3ForCausalLM, PreTrainedTokenizerFast

from router.agents import Agent, Parameter, save_agents
from router.embedded.tokenizer import train_tokenizer
from router.encoding import Encoder
from router.examples import Example, conversation, write_jsonl
from router.functiongemma import DEFAULT_SYSTEM
from router.params import Params

AGENTS = [
    Agent(
        name="billing_agent",
        description="Payments and refunds",
        parameters={
            "request_type": Parameter(description="What is wanted", enum=("refund", "dispute")),
            "urgency": Parameter(description="How soon", enum=("low", "high")),
        },
    ),
    Agent(
        name="support_agent",
        description="Something is broken",
        parameters={"issue_type": Parameter(description="What is broken", enum=("crash", "login"))},
    ),
]
TEXTS = [
    "I was charged twice this month", "my money back please", "the app crashes when I open it at night",
    "cannot sign in", "where is my refund for the second order that I sent back weeks ago?", "login page is blank",
]  # fmt: skip


def examples(count: int) -> list[Example]:
    """Labelled queries of unequal length; every seventh fits no agent."""
    made = []
    for number in range(count):
        query = f"{TEXTS[number % len(TEXTS)]} {'x' * (number % 5)}"
        if number % 7 == 6:
            agent, arguments = None, {}
        elif number % 2:
            agent, arguments = "support_agent", {"issue_type": ("crash", "login")[number % 3 % 2]}
        else:
            arguments = {"request_type": ("refund", "dispute")[number % 3 % 2], "urgency": ("low", "high")[number % 2]}
            agent = "billing_agent"
        made.append(Example(query=query, agent=agent, arguments=arguments, family=f"f{number}"))
    return made


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    texts = [text for agent in AGENTS for text in (agent.name, agent.description, *agent.parameters)]
    return train_tokenizer([*TEXTS, *texts] * 3, 420)


def encoder(agents: list[Agent] = AGENTS) -> Encoder:
    return Encoder(tokenizer(), agents, DEFAULT_SYSTEM)


def model(dtype: torch.dtype = torch.float32) -> Gemma3ForCausalLM:
    return tiny_model(tokenizer()).to(dtype)


def settings(**changes: Any) -> dict[str, Any]:
    """The repository's own params.yaml as plain values, with some changed; `train` is merged."""
    values: dict[str, Any] = YAML(typ="safe").load(REPOSITORY / "params.yaml")
    train = {**values["train"], **changes.pop("train", {})}
    return {**values, "precision": "fp32", **changes, "train": train}


def params(**changes: Any) -> Params:
    return Params.model_validate(settings(**changes))


def project(folder: Path, count: int = 24, **changes: Any) -> Path:
    """A project folder in which `stages/train.py` can run: `count` examples, a third as many to validate."""
    base = folder / "models" / "base"
    model().save_pretrained(base)
    tokenizer().save_pretrained(base)
    config = json.loads((base / "config.json").read_text()) | {"lr_scale": 500.0}
    (base / "config.json").write_text(json.dumps(config))
    save_agents(AGENTS, folder / "agents.yaml")
    (folder / "data").mkdir()
    made = [conversation(example, AGENTS, DEFAULT_SYSTEM) for example in examples(count + count // 3)]
    write_jsonl(made[:count], folder / "data" / "train.jsonl")
    write_jsonl(made[count:], folder / "data" / "validation.jsonl")
    (folder / "stages").mkdir()
    shutil.copy(REPOSITORY / "stages" / "train.py", folder / "stages")
    YAML().dump(settings(**changes), folder / "params.yaml")
    return folder


def start_training(folder: Path) -> "subprocess.Popen[str]":
    """`python stages/train.py` in a project folder, as a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "stages/train.py"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_training(folder: Path) -> str:
    """Run it to its end; what it printed."""
    process = start_training(folder)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, f"exit {process.returncode}: {errors}"
    return output
