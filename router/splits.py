"""Splits by family, stratified by agent, with near-duplicates kept on one side."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

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
        if (first.agent, first.arguments) != (example.agent, example.arguments) and not example.variant:
            raise InputError(f"the query {example.query[:60]!r} stands twice with different labels; keep one")
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
    """`total` in equal shares, no share above its size."""
    shares = dict.fromkeys(sizes, 0)
    for _ in range(total):
        open_names = [name for name in sizes if shares[name] < sizes[name]]
        name = min(open_names, key=lambda name: shares[name])
        shares[name] += 1
    return shares


def take(pool: list[Example], count: int, rng: random.Random) -> tuple[list[Example], list[Example]]:
    """Take `count` queries in whole families and equal shares for the agents; return them and what is left.

    The last family of an agent is cut to fit; what is cut off is left out of every split, so that no family straddles.
    """
    by_agent: dict[str, list[Example]] = {}
    for example in pool:
        by_agent.setdefault(str(example.agent), []).append(example)
    shares = _shares({agent: len(examples) for agent, examples in by_agent.items()}, count)
    taken: list[Example] = []
    used: set[str] = set()
    for agent, examples in by_agent.items():
        families: dict[str, list[Example]] = {}
        for example in examples:
            families.setdefault(example.family, []).append(example)
        order = sorted(families)
        rng.shuffle(order)
        missing = shares[agent]
        for family in order:
            if missing and family not in used:
                taken += families[family][:missing]
                missing -= len(families[family][:missing])
                used.add(family)
    rng.shuffle(taken)
    return taken, [example for example in pool if example.family not in used]


def make_splits(
    examples: Sequence[Example], test_source: Sequence[Example] | None, train: int, validation: int, seed: int
) -> Splits:
    """Cut labelled queries into training, validation and test set.

    With `test_source` the test set is that, whole, and queries nearly equal to one of it are refused for training.
    Where there are too few queries for both, training and validation shrink in proportion. Rewritten copies
    (`variant` > 0) go with their original into training and nowhere else.

    Raises:
        InputError: a split would be empty.
    """
    rng = random.Random(seed)
    originals = without_duplicates([example for example in examples if example.variant == 0])
    if test_source is not None:
        test = without_duplicates(test_source)
        pairs = near_duplicates([example.query for example in originals], [example.query for example in test])
        refused = {i for i, _, _ in pairs}
        originals = [example for number, example in enumerate(originals) if number not in refused]
    originals = merged_families(originals)
    available = len(originals)
    if available < train + validation:
        validation = max(1, available * validation // (train + validation))
        train = available - validation
    validation_split, rest = take(originals, validation, rng)
    train_split, rest = take(rest, min(train, len(rest)), rng)
    splits = Splits(train_split, validation_split, test if test_source is not None else rest)
    for name, rows in vars(splits).items():
        if not rows:
            raise InputError(
                f"params.yaml: the {name} split is empty ({available} queries for data.train {train} and "
                f"data.validation {validation}); lower these or add queries"
            )
    # Copies are found by agent and original family: near-duplicate families may have been merged above.
    family_of = {example.query: example.family for example in train_split}
    copies, current = [], None
    for example in examples:
        if example.variant == 0:
            current = family_of.get(example.query)
        elif current is not None:
            copies.append(example.model_copy(update={"family": current}))
    return Splits([*splits.train, *copies], splits.validation, splits.test)
