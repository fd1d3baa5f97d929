"""The decoder against full forward passes without a cache, written here independently: the same numbers and calls."""

import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from conftest import EVERY_KIND, QUERIES, REPOSITORY, WINDOW, tiny_model, tiny_router
from hypothesis import given, settings
from hypothesis import strategies as st
from test_grammar import agent_sets
from transformers import PreTrainedTokenizerFast

from router.agents import Agent
from router.decoding import Decoded, Rows
from router.functiongemma import STOP_TOKENS
from router.grammar import AGENT, State
from router.router import Router

TRAINED = REPOSITORY / "models" / "router"


class Reference:
    """Whole sequences through the model's own attention, whole vocabulary, nothing cached."""

    def __init__(self, router: Router) -> None:
        self.grammar, self.encoder, self.model = router._decoder.grammar, router._encoder, router.model
        self.text_tokens = set(self.grammar.text_tokens)

    @torch.inference_mode()
    def logits(self, message: list[int], answer: Iterable[int]) -> torch.Tensor:
        ids = torch.tensor([[*self.encoder.prefix, *message, *self.encoder.turn, *answer]])
        return self.model(input_ids=ids, use_cache=False).logits[0, -1].double()

    def step(self, message: list[int], answer: Iterable[int], state: State) -> dict[int, float]:
        tokens = [*state.edges] + (sorted(self.text_tokens) if state.text else [])
        scores = torch.log_softmax(self.logits(message, answer)[tokens], dim=0)
        return dict(zip(tokens, scores.tolist(), strict=True))

    def agents(self, message: list[int]) -> dict[str, float]:
        """Log-probability of each agent: the product along each name, summed over the ways on which it goes on."""
        found: dict[str, float] = {}

        def walk(state: State, answer: list[int], score: float) -> None:
            if state.owner is not None:
                found[state.owner] = float(np.logaddexp(found.get(state.owner, -math.inf), score))
                return
            options = self.step(message, answer, state) if state.is_choice else dict.fromkeys(state.edges, 0.0)
            for token, behind in state.edges.items():
                walk(behind, [*answer, token], score + options[token])

        walk(self.grammar.root, [], 0.0)
        return found

    def check(self, message: list[int], decoded: Decoded) -> None:
        """Follow the decoded call token by token: every choice is the likeliest one, with the same probability."""
        agents = self.agents(message)
        assert decoded.agents.keys() == agents.keys()
        for name, score in agents.items():
            assert decoded.agents[name] == pytest.approx(score, abs=1e-3), name
        assert sum(map(math.exp, decoded.agents.values())) == pytest.approx(1, abs=1e-5)
        chosen = max((name for name in agents if name), key=agents.__getitem__)
        assert chosen + "{" in self.encoder.tokenizer.decode(decoded.tokens)
        decisions = list(decoded.decisions)
        if sum(leaf.owner == chosen for leaf in self.grammar.leaves) > 1:  # "f{" beside "f{}": decided with the agent
            assert decisions.pop(0)[0] == ""
        state = self.grammar.root
        for place, token in enumerate(decoded.tokens):
            if state.decides != AGENT and state.is_choice:
                options = self.step(message, decoded.tokens[:place], state)
                decides, score = decisions.pop(0)
                assert decides == state.decides
                assert token == max(options, key=options.__getitem__)
                assert score == pytest.approx(options[token], abs=1e-3)
            behind = state.edges.get(token, state.text)
            assert behind is not None
            state = behind
        assert not state.edges
        assert not decisions


def check_router(router: Router, queries: Iterable[str]) -> None:
    reference = Reference(router)
    messages = [router._encode(query)[0] for query in queries]
    for message, decoded in zip(messages, router._decoder.decode(messages), strict=True):
        reference.check(message, decoded)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["default", "every kind"])
def test_the_same_as_full_forward_passes(
    tokenizer: PreTrainedTokenizerFast, default_agents: list[Agent], kind: str, seed: int
) -> None:
    router = tiny_router(tokenizer, default_agents if kind == "default" else EVERY_KIND, seed)
    assert len(router._encoder.prefix) > WINDOW
    check_router(router, QUERIES)


@pytest.mark.skipif(not TRAINED.exists(), reason="there is no trained router yet; run `dvc repro`")
def test_the_trained_router_is_the_same_as_full_forward_passes() -> None:
    check_router(Router.from_pretrained(TRAINED, device="cpu"), QUERIES)


def test_logits_differ_by_less_than_a_thousandth(router: Router) -> None:
    decoder, reference = router._decoder, Reference(router)
    for query in QUERIES:
        message = router._encode(query)[0]
        answer = decoder.paths[0]
        with torch.inference_mode():
            hidden = decoder._forward(Rows(1, decoder.nothing), [[*message, *decoder.turn, *answer]])
            logits = hidden[0, -1] @ decoder.head.T
        assert (logits - reference.logits(message, answer)).abs().max() < 1e-3


@pytest.mark.parametrize("kind", ["default", "every kind"])
def test_a_batch_is_the_same_as_one_by_one(
    tokenizer: PreTrainedTokenizerFast, default_agents: list[Agent], kind: str
) -> None:
    router = tiny_router(tokenizer, default_agents if kind == "default" else EVERY_KIND, seed=3)
    messages = [router._encode(query)[0] for query in [*QUERIES, "x " * 100, "a"]]
    assert len({len(message) for message in messages}) > 3
    for message, together in zip(messages, router._decoder.decode(messages), strict=True):
        (alone,) = router._decoder.decode([message])
        assert together.tokens == alone.tokens
        assert together.agents == pytest.approx(alone.agents, abs=1e-4)
        assert [name for name, _ in together.decisions] == [name for name, _ in alone.decisions]
        assert [p for _, p in together.decisions] == pytest.approx([p for _, p in alone.decisions], abs=1e-4)


@settings(max_examples=25)
@given(agent_sets(), st.integers(0, 1000), st.sampled_from([0.02, 0.3, 3.0]))
def test_every_answer_is_a_valid_call_whatever_the_weights(
    tokenizer: PreTrainedTokenizerFast, agents: list[Agent], seed: int, scale: float
) -> None:
    router = Router(tiny_model(tokenizer, seed, initializer_range=scale), tokenizer, agents)
    for route in router.route_many(QUERIES[:3]):
        (agent,) = (agent for agent in agents if agent.name == route.agent)
        assert agent.problem_with(route.arguments) is None
        assert sum(route.agents.values()) == pytest.approx(1, abs=1e-5)
        assert route.confidence == max(route.agents.values()) == route.agents[route.agent]
        assert route.argument_confidence.keys() == route.arguments.keys()
        assert all(0 <= value <= 1 for value in (route.in_scope, *route.argument_confidence.values()))


@pytest.mark.parametrize("seed", range(3))
def test_free_generation_is_that_of_transformers(
    tokenizer: PreTrainedTokenizerFast, default_agents: list[Agent], seed: int
) -> None:
    router = tiny_router(tokenizer, default_agents, seed)
    encoder, decoder = router._encoder, router._decoder
    messages = [router._encode(query)[0] for query in QUERIES]
    stop = [encoder.control[token] for token in STOP_TOKENS]
    found = decoder.generate(messages, stop, max_new_tokens=24)
    for message, tokens in zip(messages, found, strict=True):
        ids = torch.tensor([[*encoder.prefix, *message, *encoder.turn]])
        expected = router.model.generate(ids, do_sample=False, max_new_tokens=24)[0, ids.shape[1] :].tolist()
        if expected[-1] in stop:
            expected.pop()
        assert tokens == expected


def test_free_generation_stops(tokenizer: PreTrainedTokenizerFast, default_agents: list[Agent]) -> None:
    router = tiny_router(tokenizer, default_agents, seed=1)
    message = router._encode(QUERIES[0])[0]
    (tokens,) = router._decoder.generate([message], [], max_new_tokens=8)
    assert len(tokens) == 8
    first = tokens[3]
    assert router._decoder.generate([message], [first], 8) == [tokens[: tokens.index(first)]]
