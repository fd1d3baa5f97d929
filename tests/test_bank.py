"""The hand-written texts: enough of them, all labels present, and what is measured apart from what is learnt."""

from collections import Counter
from pathlib import Path

import pytest

from router.agents import load_agents
from router.duplicates import near_duplicates, normalised
from router.embedded.corpus import check_apart, load_corpus
from router.errors import InputError
from router.examples import read_bank, read_out_of_scope

DATA = Path(__file__).parent.parent / "data"
AGENTS = load_agents(DATA.parent / "agents.yaml")
BANK = read_bank(DATA / "bank", AGENTS)
OUT_OF_SCOPE = read_out_of_scope(DATA / "out_of_scope.yaml")
NEGATIVES = read_out_of_scope(DATA / "negatives.yaml")


def test_every_agent_has_at_least_250_queries() -> None:
    counts = Counter(example.agent for example in BANK)
    assert all(counts[agent.name] >= 250 for agent in AGENTS), counts


def test_every_value_of_every_parameter_is_present() -> None:
    used = {(e.agent, name, value) for e in BANK for name, value in e.arguments.items()}
    declared = {(a.name, name, value) for a in AGENTS for name, p in a.parameters.items() for value in p.enum}
    assert declared == used


def test_no_text_stands_twice() -> None:
    counts = Counter(normalised(example.query) for example in [*BANK, *OUT_OF_SCOPE, *NEGATIVES])
    assert [text for text, count in counts.items() if count > 1] == []


def test_out_of_scope_messages_are_many_and_apart_from_what_is_trained_on() -> None:
    assert len(OUT_OF_SCOPE) >= 100
    trained = [example.query for example in [*BANK, *NEGATIVES]]
    assert near_duplicates([example.query for example in OUT_OF_SCOPE], trained) == []
    assert near_duplicates([example.query for example in NEGATIVES], [example.query for example in BANK]) == []


def test_the_embedded_base_has_read_nothing_that_it_is_measured_on() -> None:
    corpus = load_corpus(DATA / "embedded")
    measured = [example.query for example in [*BANK, *OUT_OF_SCOPE, *NEGATIVES]]
    names = [agent.name for agent in AGENTS]
    check_apart(corpus, measured, names)
    # The check itself works: a text of the corpus, hardly changed, and a tool's name are found.
    tool = corpus.tools[-1]
    longest = max((utterance.text for utterance in tool.utterances), key=len)
    with pytest.raises(InputError, match="too close"):
        check_apart(corpus, [*measured, longest.upper() + " thanks"], names)
    with pytest.raises(InputError, match="named like an agent"):
        check_apart(corpus, measured, [*names, tool.agent.name])
