"""The learning curve's training sets grow one out of the other."""

import random
from collections import Counter
from itertools import pairwise

import evaluated
import pytest

from router.errors import InputError
from router.examples import Example
from router.splits import nested

curve = evaluated.stage("curve")


def queries(families: int) -> list[Example]:
    """Two to four paraphrases a family, three agents of unequal size, every tenth family out of scope; shuffled."""
    made = [
        Example(query=f"{f} {v}", agent=None if f % 10 == 9 else f"agent_{min(f % 4, 2)}", family=f"f{f}")
        for f in range(families)
        for v in range(2 + f % 3)
    ]
    random.Random(0).shuffle(made)
    return made


def test_training_sets_are_nested_and_balanced() -> None:
    made = queries(60)
    sets = [nested(made, size) for size in (12, 23, 46, 92)]
    outside = {example.query for example in made if example.agent is None}
    for size, rows in zip((12, 23, 46, 92), sets, strict=True):
        inside = [example for example in rows if example.agent]
        assert len(inside) == size
        assert {example.query for example in rows if example.agent is None} == outside
        counts = Counter(example.agent for example in inside)
        assert max(counts.values()) - min(counts.values()) <= 1
    queries_of = [{example.query for example in rows} for rows in sets]
    assert all(small < large for small, large in pairwise(queries_of))


def test_families_are_used_up_one_after_the_other() -> None:
    made = queries(60)
    taken = nested(made, 30)
    for agent in ("agent_0", "agent_1", "agent_2"):
        whole = Counter(example.family for example in made if example.agent == agent)
        part = Counter(example.family for example in taken if example.agent == agent)
        assert sum(part[family] < whole[family] for family in part) <= 1


def test_sizes_leave_as_much_to_test_on() -> None:
    assert curve.usable(curve.SIZES, 987, 23) == [12, 23, 46, 92, 184, 368]
    assert curve.usable(curve.SIZES, 115, 23) == [12, 23, 46]
    with pytest.raises(InputError, match="too few"):
        curve.usable(curve.SIZES, 30, 23)
