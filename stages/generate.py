"""Collect the labelled queries: from the hand-written bank, or from a file of your own.

    python stages/generate.py

Reads the agents and `data.source`; writes data/queries.jsonl.
"""

import itertools
import random
from collections import Counter
from pathlib import Path

from router.agents import load_agents
from router.augment import rewritten
from router.errors import InputError, run
from router.examples import Example, read_bank, read_queries, write_jsonl
from router.params import load_params

OUTPUT = Path("data/queries.jsonl")


def sample(examples: list[Example], limit: int, rng: random.Random) -> list[Example]:
    """At most `limit` queries in whole families, agents in turn, in the order in which they came."""
    sizes = Counter(example.family for example in examples)
    waiting: dict[str | None, list[str]] = {}
    for family, agent in {example.family: example.agent for example in examples}.items():
        waiting.setdefault(agent, []).append(family)
    for families in waiting.values():
        rng.shuffle(families)
    kept: set[str] = set()
    total = 0
    for turn in itertools.zip_longest(*waiting.values()):
        for family in turn:
            if family is not None and total + sizes[family] <= limit:
                total += sizes[family]
                kept.add(family)
    return [example for example in examples if example.family in kept]


def main() -> None:
    params = load_params()
    data = params.data
    agents = load_agents(params.agents)
    rng = random.Random(params.seed)
    examples = read_bank(data.source, agents) if Path(data.source).is_dir() else read_queries(data.source, agents)
    if data.limit:
        examples = sample(examples, data.limit, rng)
        if not examples:
            raise InputError(f"params.yaml: data.limit: no whole family fits into {data.limit} queries; raise it")
    rows = []
    for example in examples:
        rows.append(example)
        for variant in range(1, data.augment + 1):
            rows.append(example.model_copy(update={"query": rewritten(example.query, rng), "variant": variant}))
    OUTPUT.parent.mkdir(exist_ok=True)
    write_jsonl((row.model_dump() for row in rows), OUTPUT)
    print(f"{OUTPUT}: {len(examples)} queries from {data.source}, {len(rows) - len(examples)} rewritten copies")


if __name__ == "__main__":
    run(main)
