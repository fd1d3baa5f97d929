"""The learning curve's training sets grow one out of the other, and none shares a family with the test set."""

import evaluated
import pytest

from router.errors import InputError
from router.examples import Example
from router.splits import make_splits

curve = evaluated.stage("curve")
VALIDATION = 9


def queries(families: int) -> list[Example]:
    """Two to four paraphrases a family, three agents of unequal size."""
    words = "invoice refund outage laptop tariff camera parcel ticket socket violin".split()  # noqa: SIM905
    return [
        Example(
            query=f"{words[f % 10]} {words[f // 10 % 10]} {f * 7919} {words[(f + v) % 10]} {v * 101 + f}",
            agent=f"agent_{min(f % 4, 2)}",
            family=f"f{f}",
        )
        for f in range(families)
        for v in range(2 + f % 3)
    ]


def test_training_sets_are_nested_and_apart_from_the_test_set() -> None:
    made = queries(60)
    sizes = curve.usable((12, 23, 46, 92, 184), len(made), VALIDATION)
    splits = [make_splits(made, None, size, VALIDATION, seed=3) for size in sizes]
    train = [{example.query for example in split.train} for split in splits]
    assert [len(part) for part in train] == sizes
    assert all(small < large for small, large in zip(train, train[1:], strict=False))
    assert all(split.validation == splits[0].validation for split in splits)
    test_families = {example.family for example in splits[-1].test}
    for split in splits:
        assert not test_families & {example.family for example in [*split.train, *split.validation]}


def test_sizes_leave_as_much_to_test_on() -> None:
    assert curve.usable(curve.SIZES, 987, 23) == [12, 23, 46, 92, 184, 368]
    assert curve.usable(curve.SIZES, 115, 23) == [12, 23, 46]
    with pytest.raises(InputError, match="too few"):
        curve.usable(curve.SIZES, 30, 23)
