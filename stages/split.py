"""Cut the labelled queries into training, validation and test set, and write them as conversations.

    python stages/split.py

Reads data/queries.jsonl (and `data.test_source`), data/negatives.yaml; writes data/{train,validation,test}.jsonl.
"""

import random
from pathlib import Path

from router.agents import load_agents
from router.errors import InputError, run
from router.examples import Example, conversation, read_out_of_scope, read_queries, write_jsonl
from router.params import load_params
from router.splits import make_splits

QUERIES = "data/queries.jsonl"
NEGATIVES = "data/negatives.yaml"
BANK = Path("data/bank")
"""As `data.test_source`: no separate test set."""


def main() -> None:
    params = load_params()
    data = params.data
    agents = load_agents(params.agents)
    examples = read_queries(QUERIES, agents)
    test_source = read_queries(data.test_source, agents) if Path(data.test_source) != BANK else None
    splits = make_splits(examples, test_source, data.train, data.validation, params.seed)

    negatives = read_out_of_scope(NEGATIVES)
    for_validation = data.negatives // 4
    if data.negatives + for_validation > len(negatives):
        raise InputError(f"params.yaml: data.negatives: {data.negatives} asked for, {NEGATIVES} has too few; lower it")
    random.Random(params.seed).shuffle(negatives)
    rows: dict[str, list[Example]] = {
        "train": [*splits.train, *negatives[: data.negatives]],
        "validation": [*splits.validation, *negatives[data.negatives : data.negatives + for_validation]],
        "test": splits.test,
    }
    for name, split in rows.items():
        path = Path(f"data/{name}.jsonl")
        write_jsonl((conversation(example, agents, params.router.system) for example in split), path)
        out_of_scope = sum(example.agent is None for example in split)
        print(f"{path}: {len(split) - out_of_scope} queries, {out_of_scope} out of scope")
    unused = len(examples) + len(test_source or []) - sum(map(len, vars(splits).values()))
    if unused:
        print(f"{unused} queries are in no split: equal to others, nearly equal to test queries, or not asked for")


if __name__ == "__main__":
    run(main)
