"""Collect the labelled queries: from the hand-written bank, or from a file of your own.

    python stages/generate.py

Reads the agents and `data.source`; writes data/queries.jsonl.
"""

import random
from pathlib import Path

from router.agents import load_agents
from router.augment import rewritten
from router.errors import InputError, run
from router.examples import Example, read_bank, read_queries, write_jsonl
from router.params import load_params

OUTPUT = Path("data/queries.jsonl")


def sample(examples: list[Example], limit: int, rng: random.Random) -> list[Example]:
    """At most `limit` queries in whole families, agents in turn, in the order in which they came."""
    waiting: dict[str | None, list[str]] = {}
    for example in examples:
        families = waiting.setdefault(example.agent, [])
        if example.family not in families:
            families.append(example.family)
    for families in waiting.values():
        rng.shuffle(families)
    sizes: dict[str, int] = {}
    for example in examples:
        sizes[example.family] = sizes.get(example.family, 0) + 1
    kept: set[str] = set()
    total = 0
    while any(waiting.values()):
        for families in waiting.values():
            if families and total + sizes[families[-1]] <= limit:
                total += sizes[families[-1]]
                kept.add(families[-1])
            if families:
                families.pop()
    return [example for example in examples if example.family in kept]


def main() -> None:
    params = load_params()
    data = params.data
    agents = load_agents(params.agents)
    rng = random.Random(params.seed)
    examples = read_bank(data.source, agents) if Path(data.source).is_dir() else read_queries(data.source, agents)
    if data.limit:
        examples = sample(examples, data.limit, rng)
    rows = []
    for example in examples:
        rows.append(example)
        for variant in range(1, data.augment + 1):
            rows.append(example.model_copy(update={"query": rewritten(example.query, rng), "variant": variant}))
    if not rows:
        raise InputError(f"params.yaml: data.limit: no whole family fits into {data.limit} queries")
    OUTPUT.parent.mkdir(exist_ok=True)
    write_jsonl((row.model_dump() for row in rows), OUTPUT)
    print(f"{OUTPUT}: {len(examples)} queries from {data.source}, {len(rows) - len(examples)} rewritten copies")


if __name__ == "__main__":
    run(main)
