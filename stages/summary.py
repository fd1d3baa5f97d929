"""Describe the data as a metric, so that a reviewer sees what a change did to it.

    python stages/summary.py

Reads data/{train,validation,test}.jsonl and the tokenizer of models/base; writes metrics/data.json.
"""

from collections import Counter
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from router.agents import Agent, load_agents
from router.duplicates import normalised, similarities
from router.encoding import Encoder
from router.errors import run
from router.examples import Example, read_conversations
from router.metrics import write_metrics
from router.params import load_params

SPLITS = ("train", "validation", "test")


def counts(values: list[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def describe(examples: list[Example], agents: list[Agent], encoder: Encoder, limit: int) -> dict[str, Any]:
    """Counts by agent, value and tag, and lengths in tokens of the base's own tokenizer."""
    inside = [example for example in examples if example.agent is not None]
    lengths = [len(encoder.text(example.query)) for example in examples]
    return {
        "total": len(inside),
        "out_of_scope": len(examples) - len(inside),
        "families": len({example.family for example in inside}),
        "agents": {agent.name: sum(example.agent == agent.name for example in inside) for agent in agents},
        "values": {
            f"{agent.name}.{name}": counts(
                [str(e.arguments[name]) for e in inside if e.agent == agent.name and name in e.arguments]
            )
            for agent in agents
            for name in agent.parameters
        },
        "tags": counts([tag for example in inside for tag in example.tags]),
        "query_tokens": {
            "median": float(np.median(lengths)),
            "longest": max(lengths),
            "cut": sum(length > limit for length in lengths),
        },
    }


def main() -> None:
    params = load_params()
    agents = load_agents(params.agents)
    encoder = Encoder(AutoTokenizer.from_pretrained("models/base"), agents, params.router.system)
    splits = {name: read_conversations(f"data/{name}.jsonl") for name in SPLITS}
    texts = {name: [example.query for example in examples if example.agent] for name, examples in splits.items()}
    nearest = np.concatenate([block.max(axis=1) for _, block in similarities(texts["test"], texts["train"])])
    described = {
        name: describe(examples, agents, encoder, params.router.max_query_tokens) for name, examples in splits.items()
    }
    everything = [normalised(text) for split in texts.values() for text in split]
    write_metrics(
        {
            "splits": described,
            "prompt_tokens": len(encoder.prefix) + len(encoder.turn),
            "duplicates": len(everything) - len(set(everything)),
            "nearest_train_test": {"largest": float(nearest.max()), "mean": float(nearest.mean())},
            "unseen_values": [
                f"{agent.name}.{name}={value}"
                for agent in agents
                for name, parameter in agent.parameters.items()
                for value in parameter.enum
                if value not in described["train"]["values"][f"{agent.name}.{name}"]
            ],
        },
        "metrics/data.json",
    )
    print(f"metrics/data.json: prompt of {len(encoder.prefix) + len(encoder.turn)} tokens before each message")


if __name__ == "__main__":
    run(main)
