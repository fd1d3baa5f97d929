"""The embedded base: its corpus gives sound episodes, and building it twice gives the same bytes."""

import hashlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from ruamel.yaml import YAML

from router.embedded import meanings
from router.embedded.corpus import Corpus, desk, desk_episode, load_corpus, one_message, tool_episode, undeclared
from router.embedded.meanings import Form, word_vectors
from router.embedded.tokenizer import train_tokenizer
from router.encoding import Encoder
from router.errors import InputError

DOMAINS = ("home_broadband", "strangers_at_the_door", "online_shop", "games")


def some_domains(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in (*DOMAINS, "_desks"):
        shutil.copy(REPOSITORY / "data" / "embedded" / f"{name}.yaml", folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load_corpus(some_domains(tmp_path_factory.mktemp("corpus") / "embedded"))


@pytest.mark.parametrize("kind", [desk_episode, tool_episode])
def test_every_call_of_an_episode_is_valid_for_what_it_declares(corpus: Corpus, kind: object) -> None:
    for seed in range(10):
        episode = kind(corpus, random.Random(seed), 20)  # type: ignore[operator]
        agents = {agent.name: agent for agent in episode.agents}
        assert len(agents) == len(episode.agents)
        for text, call in episode.messages:
            assert text
            assert call is None or agents[call.name].problem_with(call.arguments) is None


def test_what_is_declared_and_asked_varies(corpus: Corpus) -> None:
    rng = random.Random(0)
    episodes = [desk_episode(corpus, rng, 20) for _ in range(20)]
    assert len({tuple(agent.name for agent in episode.agents) for episode in episodes}) > 10
    assert 0 < sum(call is None for episode in episodes for _, call in episode.messages) < 200


def test_a_stray_message_is_declined_and_others_are_not(corpus: Corpus) -> None:
    strays = {utterance.text for _, utterance in corpus.requests["other"]}
    for seed in range(200):
        rng = random.Random(seed)
        tool, utterance = one_message(corpus, rng)
        assert (undeclared(corpus, tool, utterance, rng) is None) == (utterance.text in strays)


def test_a_message_is_nearer_to_its_own_entry_than_to_others(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meanings, "PASSES", 80)  # of a small corpus
    texts = [utterance.text for tool in corpus.tools for utterance in tool.utterances]
    encoder = Encoder(train_tokenizer(texts, 1500), [], "")
    form = Form(corpus, encoder)
    vectors = word_vectors(form, encoder, corpus, 24, seed=0)
    assert torch.equal(vectors, word_vectors(form, encoder, corpus, 24, seed=0))
    entries = corpus.desks["fault"].menus[0].entries
    named = torch.stack([vectors[encoder.text(entry)].mean(dim=0) for entry in entries])
    filed = [utterance for _, utterance in corpus.requests["fault"] if utterance.filed]
    messages = torch.stack([vectors[encoder.text(utterance.text)].mean(dim=0) for utterance in filed])
    chosen = [entries[index] for index in (messages @ named.T).argmax(dim=1).tolist()]
    right = sum(entry == utterance.filed[0] for entry, utterance in zip(chosen, filed, strict=True))
    assert right > 0.5 * len(filed)


def test_a_value_without_topics_is_refused_by_name(tmp_path: Path) -> None:
    folder = some_domains(tmp_path / "embedded")
    path = folder / "games.yaml"
    lines = path.read_text().splitlines(keepends=True)
    place = lines.index("    topics:\n") + 1
    path.write_text("".join([*lines[:place], *lines[place + 1 :]]))
    with pytest.raises(InputError, match=r"games\.yaml: \w+: topics must name every value"):
        load_corpus(folder)


def test_an_entry_that_no_menu_holds_is_refused_by_name(tmp_path: Path) -> None:
    folder = some_domains(tmp_path / "embedded")
    path = folder / "games.yaml"
    lines = path.read_text().splitlines(keepends=True)
    place = lines.index("    utterances: |\n") + 1
    urgency, _, rest = lines[place].split(" | ", 2)
    lines[place] = f"{urgency} | no_such_entry | {rest}"
    path.write_text("".join(lines))
    with pytest.raises(InputError, match=r"games\.yaml: \w+: 'no_such_entry' is not an entry"):
        load_corpus(folder)


def test_a_desk_handles_only_what_is_filed_under_what_it_declares(corpus: Corpus) -> None:
    entries = set(corpus.filed["money"])
    menus = 0
    for seed in range(20):
        agent, handled = desk(corpus, "money", random.Random(seed))
        declared = next(iter(agent.parameters.values())).enum
        if not set(declared) <= {entry for menu in corpus.desks["money"].menus for entry in menu.entries}:
            continue
        menus += 1
        for topics, utterances in handled.items():
            assert topics[0] in entries & set(declared)
            assert all(utterance.filed == topics for utterance in utterances)
    assert menus > 5


def build(folder: Path) -> str:
    """A build of a few steps in a project folder of its own; the digest of what it wrote."""
    some_domains(folder / "data" / "embedded")
    for name in ("bank", "out_of_scope.yaml", "negatives.yaml"):
        (folder / "data" / name).symlink_to(REPOSITORY / "data" / name)
    shutil.copytree(REPOSITORY / "stages", folder / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "router").symlink_to(REPOSITORY / "router")
    shutil.copy(REPOSITORY / "agents.yaml", folder)
    values = YAML(typ="safe").load(REPOSITORY / "params.yaml")
    values["embedded"] |= {"vocabulary": 1500, "hidden": 32, "layers": 2, "steps": 6}
    YAML().dump(values, folder / "params.yaml")
    subprocess.run(
        [sys.executable, "stages/embedded.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=True,
        capture_output=True,
    )
    digest = hashlib.sha256()
    for path in sorted((folder / "models" / "embedded").iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    assert build(tmp_path / "one") == build(tmp_path / "two")
