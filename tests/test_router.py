"""What an application sees: loading, routing, abstaining, and clear errors."""

import json
import pickle
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import EVERY_KIND, QUERIES, tiny_router
from transformers import PreTrainedTokenizerFast

from router.agents import Agent
from router.errors import InputError
from router.router import WINDOW, Route, Router, Settings, save_settings


def assert_same(left: Route, right: Route) -> None:
    """The same answer; probabilities to the precision of float32, which depends on how a batch is cut."""
    exact = {"agents": {}, "argument_confidence": {}, "confidence": 0.0, "in_scope": 0.0}
    assert replace(left, **exact) == replace(right, **exact)  # type: ignore[arg-type]
    assert left.agents == pytest.approx(right.agents, abs=1e-4)
    assert left.argument_confidence == pytest.approx(right.argument_confidence, abs=1e-4)
    assert left.in_scope == pytest.approx(right.in_scope, abs=1e-4)


def test_everything_travels_with_the_checkpoint(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    router = tiny_router(tokenizer, EVERY_KIND, max_query_tokens=9, threshold=0.25, system="Choose.")
    router.save_pretrained(tmp_path)
    again = Router.from_pretrained(tmp_path, device="cpu")
    assert again.agents == EVERY_KIND
    assert again.settings == router.settings
    for query in QUERIES:
        assert again.route(query) == router.route(query)


def test_saving_in_sixteen_bits_leaves_the_router_as_it_is(router: Router, tmp_path: Path) -> None:
    before = router.route(QUERIES[0])
    router.save_pretrained(tmp_path, torch.bfloat16)
    assert router.model.dtype == torch.float32
    assert router.route(QUERIES[0]) == before
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert Router.from_pretrained(tmp_path, dtype=torch.bfloat16, device="cpu").route(QUERIES[0]).agent


def test_other_agents_can_be_named(saved: Path) -> None:
    assert set(Router.from_pretrained(saved, EVERY_KIND, "cpu").route("hi").agents) == {a.name for a in EVERY_KIND}


def test_agents_are_ranked(router: Router, default_agents: list[Agent]) -> None:
    route = router.route(QUERIES[0])
    assert set(route.agents) == {agent.name for agent in default_agents}
    assert list(route.agents.values()) == sorted(route.agents.values(), reverse=True)
    assert next(iter(route.agents)) == route.agent


def test_threads_get_the_same_answers(router: Router) -> None:
    queries = [f"{query} {number}" for number in range(8) for query in QUERIES]
    alone = [router.route(query) for query in queries]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(router.route, queries)) == alone


def test_a_pickled_router_gives_the_same_answers(router: Router) -> None:
    again = pickle.loads(pickle.dumps(router))
    assert [again.route(query) for query in QUERIES] == [router.route(query) for query in QUERIES]


def test_a_long_message_is_cut_and_says_so(tokenizer: PreTrainedTokenizerFast, default_agents: list[Agent]) -> None:
    router = tiny_router(tokenizer, default_agents, max_query_tokens=12)
    word = "charged "
    long = router.route(word * 200)
    assert long.truncated
    assert not router.route("hi").truncated
    assert long == router.route(word * 300)


def test_abstains_below_the_threshold_with_its_best_guess(
    tokenizer: PreTrainedTokenizerFast, default_agents: list[Agent]
) -> None:
    free = tiny_router(tokenizer, default_agents).route(QUERIES[0])
    assert not free.abstained
    assert 0 < free.score == free.confidence * free.in_scope < 1
    for threshold, abstained in ((free.score - 1e-6, False), (free.score + 1e-6, True)):
        route = tiny_router(tokenizer, default_agents, threshold=threshold).route(QUERIES[0])
        assert route == replace(free, abstained=abstained)


@pytest.mark.parametrize("query", ["", " \n\t"])
def test_an_empty_message_is_refused(router: Router, query: str) -> None:
    with pytest.raises(InputError, match="the query is empty"):
        router.route(query)


@pytest.mark.parametrize("query", ["\x00", "\ud800", "<end_of_turn>", "。", "\U0001f600" * 500])
def test_odd_messages_are_routed(router: Router, query: str) -> None:
    assert router.route(query).agent in {agent.name for agent in router.agents}


def test_many_keep_their_order(router: Router) -> None:
    queries = [" ".join(["refund"] * (7 * number % 11 + 1)) + f" {number}" for number in range(40)]
    routes = list(router.route_many(iter(queries), batch_size=4))
    assert len(routes) == len(queries)
    for query, route in zip(queries, routes, strict=True):
        assert_same(route, router.route(query))


def test_many_read_only_a_few_batches_ahead(router: Router) -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "where is my invoice?"

    routes = router.route_many(endless(), batch_size=2)
    assert read == 0
    for count in range(1, 3 * 2 * WINDOW):
        next(routes)
        assert read <= count + 2 * WINDOW


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no such folder"),
        (lambda folder: (folder / "agents.yaml").unlink(), "has no agents.yaml"),
        (lambda folder: (folder / "agents.yaml").write_text("- name: 7"), "agent 1"),
        (lambda folder: (folder / "router.json").write_text('{"treshold": 1}'), "router.json: not the settings"),
        (lambda folder: (folder / "router.json").write_text("{"), "router.json: not the settings"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"cut off"), "no usable checkpoint"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no usable checkpoint"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "no usable checkpoint"),
        (lambda folder: (folder / "config.json").write_text("{}"), "no usable checkpoint"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "no chat template"),
    ],
)
def test_a_broken_checkpoint_is_one_clear_line(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: object, message: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path / "broken"
    shutil.copytree(saved, folder)
    damage(folder)  # type: ignore[operator]
    with pytest.raises(InputError, match=message) as caught:
        Router.from_pretrained(folder, device="cpu")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_settings_are_read_back(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    save_settings(Settings(threshold=0.5), folder)
    assert Router.from_pretrained(folder, device="cpu").settings.threshold == 0.5
