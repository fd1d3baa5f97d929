"""Shared by the tests: a tiny tokenizer, tiny random models, agents of every kind."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GenerationConfig, PreTrainedTokenizerFast

from router.agents import Agent, Parameter, load_agents
from router.embedded.tokenizer import train_tokenizer
from router.encoding import Encoder
from router.functiongemma import DEFAULT_SYSTEM, STOP_TOKENS
from router.router import Router, Settings

REPOSITORY = Path(__file__).parent.parent
VOCABULARY = 600
WINDOW = 24
"""Of the sliding-window layer: far less than any prefix."""

settings.register_profile("fast", deadline=None, max_examples=60)
settings.load_profile("fast")

QUERIES = (
    "I was charged twice this month",
    "app crashes",
    "Which plan has more storage, the small or the large one? My team has 12 people (and grows).",
    "refund!!",
)

EVERY_KIND = [
    Agent(
        name="open_ticket",
        description="Opens a ticket.",
        parameters={
            "attempts": Parameter(type="integer", description="How often tried", minimum=-3, maximum=120),
            "amount": Parameter(type="number", description="Money", required=False, minimum=0),
            "contact": Parameter(type="boolean", description="Call back?"),
            "labels": Parameter(type="array", description="Labels", enum=("bug", "bug_report", "ui"), required=False),
            "note": Parameter(description="In their words", required=False, max_tokens=6),
            "severity": Parameter(description="How bad", enum=("low", "low_now", "high")),
        },
    ),
    Agent(name="open", description="Opens the shop."),
    Agent(
        name="open_ticket_again",
        description="Reopens one.",
        parameters={"number": Parameter(type="integer", description="Which"), "why": Parameter(required=False)},
    ),
    Agent(name="handover", description="To a person.", parameters={"tags": Parameter(type="array", enum=("a", "b"))}),
]
"""Every kind of parameter, optional and required, and names that begin like others."""


@pytest.fixture(scope="session")
def default_agents() -> list[Agent]:
    return load_agents(REPOSITORY / "agents.yaml")


@pytest.fixture(scope="session")
def tokenizer(default_agents: list[Agent]) -> PreTrainedTokenizerFast:
    """As the embedded base's, trained on next to nothing: most words fall into several tokens."""
    texts = [" ".join([agent.name, agent.description, *agent.parameters]) for agent in (*default_agents, *EVERY_KIND)]
    return train_tokenizer([*texts, *QUERIES] * 3, VOCABULARY)


def tiny_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0, **changes: Any) -> Gemma3ForCausalLM:
    """A Gemma 3 with one sliding and one full layer and random weights, large enough that choices differ."""
    torch.manual_seed(seed)
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=4096,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    for name, value in changes.items():
        setattr(config, name, value)
    model = Gemma3ForCausalLM(config)
    stop = [tokenizer.convert_tokens_to_ids(token) for token in STOP_TOKENS]
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=stop, pad_token_id=tokenizer.pad_token_id)
    return model.eval()


def tiny_router(tokenizer: PreTrainedTokenizerFast, agents: Sequence[Agent], seed: int = 0, **changes: Any) -> Router:
    """A router on a tiny model; `changes` are its settings."""
    return Router(tiny_model(tokenizer, seed), tokenizer, agents, Settings(**changes))


@pytest.fixture(scope="session")
def encoder(tokenizer: PreTrainedTokenizerFast, default_agents: list[Agent]) -> Encoder:
    return Encoder(tokenizer, default_agents, DEFAULT_SYSTEM)


@pytest.fixture(scope="session")
def router(tokenizer: PreTrainedTokenizerFast, default_agents: list[Agent]) -> Router:
    return tiny_router(tokenizer, default_agents)


@pytest.fixture(scope="session")
def saved(router: Router, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a saved router."""
    folder = tmp_path_factory.mktemp("router")
    router.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def publishable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that ran through, with a package of model and data built by a dry run of stage publish."""
    from publication import project, run_stage

    folder = project(tmp_path_factory.mktemp("publication") / "project", dry_run=True)
    run_stage(folder, "publish")
    return folder
