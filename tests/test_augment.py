"""Rewritten queries: other letters, the same request."""

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from router.agents import load_agents
from router.augment import CONTRACTIONS, INTERCHANGEABLE, ONE_WAY, REWRITES, rewritten, typo
from router.examples import read_bank

ROOT = Path(__file__).parent.parent
AGENTS = load_agents(ROOT / "agents.yaml")
QUERIES = [example.query for example in read_bank(ROOT / "data" / "bank", AGENTS)][::7]


def test_the_same_seed_rewrites_the_same_and_another_seed_differently() -> None:
    def all_with(seed: int) -> list[str]:
        rng = random.Random(seed)
        return [rewritten(query, rng) for query in QUERIES]

    assert all_with(1) == all_with(1)
    assert all_with(1) != all_with(2)


def test_a_copy_differs_from_its_query_and_is_never_empty() -> None:
    rng = random.Random(0)
    for query in [*QUERIES, "?", "🙂", "ok", "I"]:
        for _ in range(3):
            copy = rewritten(query, rng)
            assert copy.strip()
            assert copy != query


@pytest.mark.parametrize("rewrite", REWRITES, ids=lambda rewrite: rewrite.__name__)
def test_a_rewrite_keeps_every_number_and_most_of_the_letters(
    rewrite: Callable[[str, random.Random], str],
) -> None:
    rng = random.Random(0)
    for query in QUERIES:
        changed = rewrite(query, rng)
        assert re.findall(r"\d+", changed) == re.findall(r"\d+", query)
        assert len(changed) > 0.7 * len(query)


def test_no_rewrite_brings_in_or_takes_away_a_word_of_a_label() -> None:
    """`show` for `display`, or `high` for `big`, would change the request."""
    labels = {
        word
        for agent in AGENTS
        for parameter in agent.parameters.values()
        for value in parameter.enum
        for word in value.split("_")
    }
    words = {word for pair in [*INTERCHANGEABLE, *ONE_WAY] for side in pair for word in side.split()}
    assert not labels & words


def test_no_word_is_rewritten_twice() -> None:
    """One replacement must not feed the next, or a word could end far from where it began."""
    targets = [new for _, new in ONE_WAY] + [side for pair in INTERCHANGEABLE for side in pair]
    sources = [old for old, _ in ONE_WAY] + [side for pair in INTERCHANGEABLE for side in pair]
    assert len(sources) == len(set(sources))
    assert not set(targets[: len(ONE_WAY)]) & set(sources)
    assert len(set(CONTRACTIONS.values())) == len(CONTRACTIONS)


def test_a_typo_is_one_slip_inside_a_longer_word() -> None:
    rng = random.Random(0)
    for _ in range(200):
        slipped = typo("the invoice is 4 days late", rng)
        assert abs(len(slipped) - len("the invoice is 4 days late")) <= 1
        assert slipped.startswith("the i")
        assert " is 4 d" in slipped
    assert typo("ok 12345 no", rng) == "ok 12345 no"
