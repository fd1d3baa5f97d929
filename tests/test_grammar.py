"""The automaton lets through valid answers, all of them and nothing else."""

import random
import string

import pytest
from conftest import EVERY_KIND
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from router.agents import FRACTION_DIGITS, Agent, Parameter, Value
from router.encoding import Encoder
from router.errors import InputError
from router.examples import DECLINE
from router.functiongemma import DEFAULT_SYSTEM, END_CALL, Call, parse
from router.grammar import AGENT, Grammar, State

# Few letters, so that beginnings are often shared.
NAMES = st.text("ab_", min_size=1, max_size=4).filter(lambda name: name != "_")
VALUES = st.lists(st.text("ab_ ,{}[]:é<7", min_size=1, max_size=5), min_size=1, max_size=5, unique=True)


@st.composite
def parameters(draw: st.DrawFn) -> Parameter:
    kind = draw(st.sampled_from(["string", "enum", "boolean", "integer", "number", "array"]))
    required = draw(st.booleans())
    if kind == "string":
        return Parameter(required=required, max_tokens=draw(st.integers(1, 5)))
    if kind in ("enum", "array"):
        return Parameter(type="array" if kind == "array" else "string", required=required, enum=draw(VALUES))
    if kind == "boolean":
        return Parameter(type="boolean", required=required)
    bound = st.integers(-(10**9), 10**9) | st.integers(-20, 20)
    if kind == "number":
        bound = bound | st.floats(-1000, 1000).map(lambda value: round(value, FRACTION_DIGITS))
    low, high = sorted([draw(bound), draw(bound)])
    bounds = {"minimum": low, "maximum": high}
    for name in draw(st.sets(st.sampled_from(["minimum", "maximum"]))):
        del bounds[name]
    return Parameter(type=kind, required=required, **bounds)


@st.composite
def agent_sets(draw: st.DrawFn) -> list[Agent]:
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    arguments = st.dictionaries(NAMES, parameters(), max_size=4)
    return [Agent(name=name, description="", parameters=draw(arguments)) for name in names]


def grammar_of(tokenizer: PreTrainedTokenizerFast, agents: list[Agent]) -> tuple[Grammar, Encoder]:
    encoder = Encoder(tokenizer, agents, DEFAULT_SYSTEM)
    return Grammar(agents, encoder, DECLINE), encoder


def walk(grammar: Grammar, rng: random.Random) -> list[int]:
    """The tokens of a random answer."""
    tokens, state = [], grammar.root
    while state.edges or state.text:
        options = [*state.edges]
        if state.text:
            options.append(rng.choice(grammar.text_tokens))
        tokens.append(rng.choice(options))
        state = after(state, tokens[-1], grammar)
    return tokens


def after(state: State, token: int, grammar: Grammar) -> State:
    edges = state.edges
    if token in edges:
        return edges[token]
    assert token in grammar.text_tokens, f"{token} is not allowed"
    assert state.text is not None
    return state.text


def check_answer(tokens: list[int], agents: list[Agent], tokenizer: PreTrainedTokenizerFast) -> None:
    text = tokenizer.decode(tokens)
    if "call:" not in text:
        assert parse(text).text == DECLINE
        return
    answer = parse(text + END_CALL)
    assert answer.error is None, (text, answer.error)
    (call,) = answer.calls
    (agent,) = (agent for agent in agents if agent.name == call.name)
    assert agent.problem_with(call.arguments) is None, text


@given(agent_sets(), st.integers(0, 2**32))
def test_every_walk_is_one_valid_call_or_the_decline(
    tokenizer: PreTrainedTokenizerFast, agents: list[Agent], seed: int
) -> None:
    grammar, _ = grammar_of(tokenizer, agents)
    rng = random.Random(seed)
    for _ in range(8):
        check_answer(walk(grammar, rng), agents, tokenizer)


def test_walks_of_every_kind_of_parameter(tokenizer: PreTrainedTokenizerFast) -> None:
    grammar, _ = grammar_of(tokenizer, EVERY_KIND)
    rng = random.Random(0)
    answers = [walk(grammar, rng) for _ in range(1000)]
    for tokens in answers:
        check_answer(tokens, EVERY_KIND, tokenizer)
    # The walks were free: calls of every agent, and declines, came up.
    assert all(any(agent.name + "{" in tokenizer.decode(tokens) for tokens in answers) for agent in EVERY_KIND)
    assert any(DECLINE in tokenizer.decode(tokens) for tokens in answers)


@st.composite
def values(draw: st.DrawFn, parameter: Parameter) -> Value:
    low = -(10**6) if parameter.minimum is None else parameter.minimum
    high = 10**6 if parameter.maximum is None else parameter.maximum
    low, high = min(low, high), max(low, high)
    match parameter.type:
        case "boolean":
            return draw(st.booleans())
        case "integer":
            return draw(st.integers(int(low), int(high)))
        case "number":
            value = round(draw(st.floats(low, high)), FRACTION_DIGITS)
            return min(max(value, low), high) + 0.0  # no minus zero
        case "array":
            chosen = draw(st.sets(st.sampled_from(parameter.enum)))
            return [value for value in parameter.enum if value in chosen]
    if parameter.enum:
        return draw(st.sampled_from(parameter.enum))
    return draw(st.text(string.ascii_letters + " .,{}[]:-_0123456789", max_size=parameter.max_tokens))


@given(st.data(), agent_sets())
def test_every_valid_call_is_accepted(
    tokenizer: PreTrainedTokenizerFast, data: st.DataObject, agents: list[Agent]
) -> None:
    grammar, encoder = grammar_of(tokenizer, agents)
    agent = data.draw(st.sampled_from(agents))
    arguments = {
        name: data.draw(values(parameter), name)
        for name, parameter in agent.parameters.items()
        if parameter.required or data.draw(st.booleans(), f"{name}?")
    }
    assert agent.problem_with(arguments) is None
    *tokens, end, stop = encoder.call(Call(agent.name, dict(arguments)))
    state = grammar.root
    for token in tokens:
        state = after(state, token, grammar)
    assert not state.edges
    assert state.text is None
    assert [end, stop] == [encoder.control[END_CALL], encoder.control["<start_function_response>"]]


def test_every_default_call_is_accepted_and_counted(
    tokenizer: PreTrainedTokenizerFast, default_agents: list[Agent]
) -> None:
    grammar, encoder = grammar_of(tokenizer, default_agents)

    def count(state: State) -> int:
        return sum(count(behind) for behind in state.edges.values()) if state.edges else 1

    calls = 0
    for agent in default_agents:
        (first, one), (second, two) = agent.parameters.items()
        for value in one.enum:
            for other in two.enum:
                state = grammar.root
                for token in encoder.call(Call(agent.name, {first: value, second: other}))[:-2]:
                    state = state.edges[token]
                assert not state.edges
                calls += 1
    assert count(grammar.root) == calls + 1  # and the decline


def test_agents_are_settled_where_their_names_part(tokenizer: PreTrainedTokenizerFast) -> None:
    grammar, _ = grammar_of(tokenizer, EVERY_KIND)
    assert {leaf.owner for leaf in grammar.leaves} == {"", *(agent.name for agent in EVERY_KIND)}
    for path, state in grammar.agent_choices:
        assert state.decides == AGENT
        assert state.is_choice
        assert "{" not in tokenizer.decode(path)


def test_many_values_of_an_array_stay_small(tokenizer: PreTrainedTokenizerFast) -> None:
    values = tuple(f"value_{number}" for number in range(40))  # 2 ** 40 lists
    agents = [Agent(name="f", description="", parameters={"a": Parameter(type="array", enum=values)})]
    grammar, _ = grammar_of(tokenizer, agents)
    check_answer(walk(grammar, random.Random(1)), agents, tokenizer)


@pytest.mark.parametrize(
    "parameter",
    [
        Parameter(type="integer", minimum=10**16, maximum=10**17),
        Parameter(type="number", minimum=0.00001, maximum=0.00002),
    ],
)
def test_bounds_without_a_number_between_them_are_refused(
    tokenizer: PreTrainedTokenizerFast, parameter: Parameter
) -> None:
    with pytest.raises(InputError, match="parameter x: no number"):
        grammar_of(tokenizer, [Agent(name="f", description="", parameters={"x": parameter})])


def test_a_value_that_the_tokenizer_changes_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    agents = [Agent(name="f", description="", parameters={"x": Parameter(enum=("a▁b",))})]
    with pytest.raises(InputError, match="f: x: the tokenizer cannot write the value 'a▁b'"):
        grammar_of(tokenizer, agents)
