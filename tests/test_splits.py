"""Splits: families and near-duplicates on one side, every agent its share, the same seed the same cut."""

import random
from collections import Counter
from pathlib import Path

import pytest

from router.agents import load_agents
from router.augment import rewritten
from router.duplicates import near_duplicates, normalised
from router.errors import InputError
from router.examples import Example, read_bank
from router.splits import Splits, make_splits

ROOT = Path(__file__).parent.parent
BANK = read_bank(ROOT / "data" / "bank", load_agents(ROOT / "agents.yaml"))


def example(number: int, agent: str = "a", family: str | None = None, query: str | None = None) -> Example:
    """Queries of random letters: no two are nearly the same."""
    text = query or "".join(random.Random(number).choices("abcdefghij    ", k=50))
    return Example(query=text, agent=agent, arguments={}, family=family or f"f{number}")


def texts(split: list[Example]) -> list[str]:
    return [example.query for example in split]


def families(split: list[Example]) -> set[str]:
    return {example.family for example in split}


@pytest.fixture(scope="module")
def splits() -> Splits:
    return make_splits(BANK, None, 92, 23, 42)


def test_the_default_cut_has_92_training_and_23_validation_queries_and_the_rest_for_the_test(splits: Splits) -> None:
    assert (len(splits.train), len(splits.validation)) == (92, 23)
    assert len(splits.test) >= 400


def test_every_agent_has_its_share(splits: Splits) -> None:
    whole = Counter(example.agent for example in BANK)
    for split in (splits.train, splits.validation):
        for agent, count in Counter(example.agent for example in split).items():
            assert abs(count - len(split) * whole[agent] / len(BANK)) <= 1


def test_no_family_and_no_near_duplicate_straddles_two_splits(splits: Splits) -> None:
    parts = list(vars(splits).values())
    for left, right in [(0, 1), (0, 2), (1, 2)]:
        assert not families(parts[left]) & families(parts[right])
        assert not near_duplicates(texts(parts[left]), texts(parts[right]))
    everything = [normalised(text) for part in parts for text in texts(part)]
    assert len(everything) == len(set(everything))


@pytest.mark.parametrize("seed", range(5))
def test_small_data_in_big_families_still_gives_exact_counts_and_whole_families(seed: int) -> None:
    data = [example(n, agent="ab"[n % 2], family=f"f{n // 14}-{n % 2}") for n in range(140)]
    cut = make_splits(data, None, 30, 11, seed)
    assert (len(cut.train), len(cut.validation)) == (30, 11)
    assert not families(cut.train) & families(cut.validation)
    assert not (families(cut.train) | families(cut.validation)) & families(cut.test)


def test_a_rare_agent_is_not_used_up_by_one_split() -> None:
    cut = make_splits([example(n, agent="rare" if n % 10 == 0 else "common") for n in range(200)], None, 50, 20, 0)
    assert [sum(e.agent == "rare" for e in split) for split in vars(cut).values()] == [5, 2, 13]


def test_the_same_seed_gives_the_same_splits_and_another_seed_others(splits: Splits) -> None:
    assert make_splits(BANK, None, 92, 23, 42) == splits
    assert texts(make_splits(BANK, None, 92, 23, 43).train) != texts(splits.train)


def test_near_duplicates_of_different_families_end_in_one_split() -> None:
    data = []
    for n in range(60):
        text = example(n).query
        data += [example(0, family=f"a{n}", query=text), example(0, family=f"b{n}", query=f"{text} please")]
    cut = make_splits(data, None, 30, 10, 1)
    parts = list(vars(cut).values())
    assert all(not near_duplicates(texts(parts[i]), texts(parts[j])) for i, j in [(0, 1), (0, 2), (1, 2)])


def test_a_test_source_is_used_whole_and_what_is_close_to_it_is_not_trained_on() -> None:
    data = [example(n) for n in range(40)]
    held_out = [
        example(100),
        example(0, family="t0", query=data[0].query.upper() + "!"),
        example(0, family="t1", query=data[1].query + " thanks"),
        example(101, family="f2"),
    ]
    cut = make_splits(data, held_out, 30, 7, 0)
    assert texts(cut.test) == texts(held_out)
    trained = {*texts(cut.train), *texts(cut.validation)}
    assert trained == set(texts(data[3:]))


def test_too_few_queries_shrink_training_and_validation_in_proportion() -> None:
    cut = make_splits([example(n) for n in range(50)], [example(1000)], 92, 23, 0)
    assert (len(cut.train), len(cut.validation)) == (40, 10)


@pytest.mark.parametrize(
    ("count", "source", "empty"), [(30, False, "test"), (1, True, "train"), (0, True, "train|valid")]
)
def test_an_empty_split_is_an_error(count: int, source: bool, empty: str) -> None:
    with pytest.raises(
        InputError, match=rf"params\.yaml: data\.train, data\.validation: the ({empty}\w*) split is empty"
    ):
        make_splits([example(n) for n in range(count)], [example(1000)] if source else None, 92, 23, 0)


def test_equal_queries_count_once_and_must_agree_on_their_label() -> None:
    twice = [example(0), example(0, family="again", query=example(0).query.upper()), *map(example, range(1, 30))]
    cut = make_splits(twice, None, 10, 5, 0)
    assert sum(map(len, vars(cut).values())) == 30
    twice[1] = twice[1].model_copy(update={"agent": "b"})
    with pytest.raises(InputError, match=r"stands twice with different labels \(f0 and again\)"):
        make_splits(twice, None, 10, 5, 0)


def test_rewritten_copies_follow_their_query_into_training_and_nowhere_else() -> None:
    rng = random.Random(0)
    rows = []
    for original in BANK[::3]:
        rows.append(original)
        rows += [original.model_copy(update={"query": rewritten(original.query, rng), "variant": v}) for v in (1, 2)]
    plain, cut = make_splits(BANK[::3], None, 60, 20, 0), make_splits(rows, None, 60, 20, 0)
    assert (cut.validation, cut.test, cut.train[:60]) == (plain.validation, plain.test, plain.train)
    copies = cut.train[60:]
    assert 100 < len(copies) <= 120
    labels = {original.family: (original.agent, original.arguments) for original in cut.train[:60]}
    assert all(copy.variant and copy.family in labels for copy in copies)
    assert not near_duplicates(texts(copies), texts([*cut.validation, *cut.test]))
