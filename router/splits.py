"""Splits by family, stratified by agent, with near-duplicates kept on one side."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from router.duplicates import near_duplicates, normalised
from router.errors import InputError
from router.examples import Example


@dataclass(frozen=True)
class Splits:
    train: list[Example]
    validation: list[Example]
    test: list[Example]


def without_duplicates(examples: Sequence[Example]) -> list[Example]:
    """The first of all queries that are equal but for case, punctuation and blanks.

    Raises:
        InputError: two equal queries have different labels.
    """
    seen: dict[str, Example] = {}
    for example in examples:
        first = seen.setdefault(normalised(example.query) or example.query, example)
        if (first.agent, first.arguments) != (example.agent, example.arguments):
            raise InputError(
                f"the query {example.query[:60]!r} stands twice with different labels ({first.family} and "
                f"{example.family}); keep one"
            )
    return list(seen.values())


def merged_families(examples: Sequence[Example]) -> list[Example]:
    """The same queries, families that hold nearly the same query made one."""
    root = {example.family: example.family for example in examples}

    def find(family: str) -> str:
        while root[family] != family:
            family = root[family]
        return family

    texts = [example.query for example in examples]
    for i, j, _ in near_duplicates(texts, texts):
        root[find(examples[j].family)] = find(examples[i].family)
    return [example.model_copy(update={"family": find(example.family)}) for example in examples]


def _shares(sizes: dict[str, int], total: int) -> dict[str, int]:
    """`total` (at most the sum of sizes) in proportion to `sizes`; rounded by largest remainder."""
    whole = sum(sizes.values())
    exact = {name: total * size / whole for name, size in sizes.items()}
    shares = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(sizes, key=lambda name: shares[name] - exact[name])
    for name in by_remainder[: total - sum(shares.values())]:
        shares[name] += 1
    return shares


def take(pool: list[Example], count: int, rng: random.Random) -> tuple[list[Example], list[Example]]:
    """Take `count` queries in whole families, as many of each agent as its share of the pool; return them and the rest.

    Where no whole family fits into what an agent still misses, its smallest is cut to fit. What is cut off is left out
    of every split, so that no family straddles.
    """
    by_agent: dict[str, dict[str, list[Example]]] = {}
    for example in pool:
        by_agent.setdefault(str(example.agent), {}).setdefault(example.family, []).append(example)
    missing = _shares({agent: sum(map(len, families.values())) for agent, families in by_agent.items()}, count)
    taken: list[Example] = []
    used: set[str] = set()
    for agent, families in by_agent.items():
        order = sorted(families.keys() - used)
        rng.shuffle(order)
        left = []
        for family in order:
            if len(families[family]) > missing[agent]:
                left.append(family)
                continue
            taken += families[family]
            missing[agent] -= len(families[family])
            used.add(family)
        if missing[agent] and left:
            smallest = min(left, key=lambda family: len(families[family]))
            taken += families[smallest][: missing[agent]]
            used.add(smallest)
    rng.shuffle(taken)
    return taken, [example for example in pool if example.family not in used]


def make_splits(
    examples: Sequence[Example], test_source: Sequence[Example] | None, train: int, validation: int, seed: int
) -> Splits:
    """Cut labelled queries into training, validation and test set.

    With `test_source` the test set is that, whole, and queries nearly equal to one of it, or of a family of it, are
    refused for training. Where there are too few queries for both, training and validation shrink in proportion.
    Rewritten copies (`variant` > 0) follow their original into training, never elsewhere; those that came out nearly
    equal to a query of another split are dropped.

    Raises:
        InputError: a split would be empty.
    """
    rng = random.Random(seed)
    originals = without_duplicates([example for example in examples if example.variant == 0])
    test = without_duplicates(test_source or [])
    families = {example.family for example in test}
    originals = [example for example in apart_from(originals, test) if example.family not in families]
    originals = merged_families(originals)
    available = len(originals)
    wanted = train + validation
    if available < wanted:
        validation = max(1, available * validation // wanted)
        train = available - validation
    validation_split, rest = take(originals, validation, rng)
    train_split, rest = take(rest, min(train, len(rest)), rng)
    splits = Splits(train_split, validation_split, rest if test_source is None else test)
    for name, rows in vars(splits).items():
        if not rows:
            raise InputError(
                f"params.yaml: data.train, data.validation: the {name} split is empty ({available} queries, {wanted} "
                "asked for); lower these or add queries"
            )
    held_out = [*splits.validation, *splits.test]
    return Splits(
        [*splits.train, *apart_from(copies(examples, splits.train), held_out)], splits.validation, splits.test
    )


def apart_from(examples: Sequence[Example], others: Sequence[Example]) -> list[Example]:
    """The examples that are not nearly equal to one of `others`."""
    pairs = near_duplicates([example.query for example in examples], [other.query for other in others])
    near = {i for i, _, _ in pairs}
    return [example for number, example in enumerate(examples) if number not in near]


def copies(examples: Sequence[Example], originals: Sequence[Example]) -> list[Example]:
    """The rewritten copies of `originals`. In `examples` they stand behind the query that they were made from."""
    family_of = {example.query: example.family for example in originals}  # families may have been merged since
    found, family = [], None
    for example in examples:
        if example.variant == 0:
            family = family_of.get(example.query)
        elif family is not None:
            found.append(example.model_copy(update={"family": family}))
    return found


def nested(examples: Sequence[Example], size: int) -> list[Example]:
    """The first `size` queries, agents in turn and families together; and every message that no agent fits.

    A smaller size gives a part of what a larger one gives.
    """
    families = {family: rank for rank, family in enumerate(dict.fromkeys(example.family for example in examples))}
    waiting: dict[str | None, list[Example]] = {}
    for example in sorted(examples, key=lambda example: families[example.family]):
        waiting.setdefault(example.agent, []).append(example)
    out_of_scope = waiting.pop(None, [])
    turns = [example for turn in zip_longest(*waiting.values()) for example in turn if example is not None]
    return [*turns[:size], *out_of_scope]
