"""agents.yaml: what may be declared, how it is exported, and what a mistake says."""

from pathlib import Path
from typing import Any

import pytest

from router.agents import Agent, Parameter, load_agents, save_agents
from router.errors import InputError

DEFAULT = Path(__file__).parent.parent / "agents.yaml"
EVERY_KIND = Agent(
    name="every_kind",
    description="One parameter of each kind",
    parameters={
        "choice": Parameter(enum=("a", "b"), description="One of two"),
        "note": Parameter(required=False, max_tokens=8),
        "urgent": Parameter(type="boolean"),
        "count": Parameter(type="integer", minimum=1, maximum=9),
        "share": Parameter(type="number", minimum=0),
        "parts": Parameter(type="array", enum=("x", "y", "z")),
    },
)


def test_the_default_agents_have_closed_enums_that_cover_support() -> None:
    agents = {agent.name: agent for agent in load_agents(DEFAULT)}
    assert list(agents) == ["technical_support_agent", "billing_agent", "product_info_agent"]
    sizes = {name: len(parameter.enum) for agent in agents.values() for name, parameter in agent.parameters.items()}
    assert set(sizes) == {"issue_type", "priority", "request_type", "urgency", "query_type", "category"}
    assert all(15 <= sizes[name] <= 20 for name in ("issue_type", "request_type", "category"))
    assert 8 <= sizes["query_type"] <= 12
    assert agents["billing_agent"].parameters["urgency"].enum == ("low", "medium", "high")
    assert agents["technical_support_agent"].parameters["priority"].enum == ("low", "medium", "high")
    assert all(parameter.required for agent in agents.values() for parameter in agent.parameters.values())


def test_saved_agents_read_back_the_same(tmp_path: Path) -> None:
    agents = [*load_agents(DEFAULT), EVERY_KIND]
    save_agents(agents, tmp_path / "agents.yaml")
    assert load_agents(tmp_path / "agents.yaml") == agents


def test_an_agent_is_exported_as_json_schema() -> None:
    function = EVERY_KIND.tool_schema()["function"]
    assert function["name"] == "every_kind"
    assert function["parameters"]["required"] == ["choice", "urgent", "count", "share", "parts"]
    properties = function["parameters"]["properties"]
    assert properties["choice"] == {"type": "string", "description": "One of two", "enum": ["a", "b"]}
    assert properties["note"] == {"type": "string", "description": ""}
    assert properties["parts"]["items"] == {"type": "string", "enum": ["x", "y", "z"]}


RIGHT: dict[str, Any] = {"choice": "a", "urgent": True, "count": 3, "share": 0.5, "parts": ["x", "z"]}


@pytest.mark.parametrize("changes", [{}, {"note": "a, {b}: c"}, {"share": 2}, {"parts": []}, {"count": 9}])
def test_valid_arguments_have_no_problem(changes: dict[str, Any]) -> None:
    assert EVERY_KIND.problem_with(RIGHT | changes) is None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"choice": "c"}, "argument 'choice' of every_kind: 'c' is not one of a, b"),
        ({"choice": None}, "argument 'choice' of every_kind: None is not text"),
        ({"note": "x<escape>y"}, "contains a control token"),
        ({"urgent": "true"}, "'true' is not true or false"),
        ({"count": 1.0}, "1.0 is not an integer"),
        ({"count": True}, "True is not an integer"),
        ({"count": 10}, "10 is above 9"),
        ({"share": -0.5}, "-0.5 is below 0"),
        ({"share": "0.5"}, "'0.5' is not a number"),
        ({"share": float("nan")}, "nan is not a number that can be written"),
        ({"share": float("inf")}, "inf is not a number that can be written"),
        ({"parts": "x"}, "'x' is not a list"),
        ({"parts": ["z", "x"]}, "must hold values of x, y, z, each once, in this order"),
        ({"parts": ["x", "x"]}, "each once"),
        ({"parts": [["x"]]}, "must hold values of"),
        ({"other": 1}, "every_kind has no argument 'other' (it has choice, note"),
    ],
)
def test_a_wrong_argument_is_told(changes: dict[str, Any], problem: str) -> None:
    assert problem in str(EVERY_KIND.problem_with(RIGHT | changes))


def test_a_missing_argument_is_told_unless_it_is_optional() -> None:
    assert EVERY_KIND.problem_with({k: v for k, v in RIGHT.items() if k != "count"}) == (
        "argument 'count' of every_kind is missing"
    )


ONE = "- name: a\n  description: text\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a list of at least one agent"),
        ("name: a", "must be a list of at least one agent"),
        ("- [", "not valid YAML: "),
        ("- just text", "agent 1 (?): the whole: "),
        ("- name: a", "agent 1 (a): description: missing"),
        (ONE + ONE, "agent 2: the name 'a' is taken"),
        (ONE.replace("a\n", "billing agent\n", 1), "agent 1 (billing agent): name: 'billing agent' must consist of"),
        (ONE.replace("text", "a <escape> b"), "agent 1 (a): description: must not contain the control token <escape>"),
        (ONE + "  tools: []", "agent 1 (a): tools: unknown key"),
        (ONE + "  parameters: {type: {}}", "agent 1 (a): parameters.type: a parameter cannot be called type"),
        (ONE + "  parameters: {9x: {}}", "agent 1 (a): parameters.9x: '9x' must consist of"),
        (ONE + "  parameters: {x: {type: date}}", "agent 1 (a): parameters.x.type: "),
        (ONE + "  parameters: {x: {enum: [1]}}", "agent 1 (a): parameters.x.enum.0: "),
        (ONE + "  parameters: {x: {enum: [b, b]}}", "agent 1 (a): parameters.x: enum names a value twice"),
        (ONE + "  parameters: {x: {enum: ['']}}", "agent 1 (a): parameters.x: enum holds an empty value"),
        (ONE + "  parameters: {x: {enum: [<eos>]}}", "agent 1 (a): parameters.x.enum.0: must not contain the control"),
        (ONE + "  parameters: {x: {type: array}}", "agent 1 (a): parameters.x: an array needs an enum"),
        (ONE + "  parameters: {x: {type: integer, enum: [b]}}", "agent 1 (a): parameters.x: enum goes with"),
        (ONE + "  parameters: {x: {minimum: 1}}", "agent 1 (a): parameters.x: minimum and maximum go with"),
        (ONE + "  parameters: {x: {type: integer, minimum: 0.5}}", "whole numbers"),
        (ONE + "  parameters: {x: {type: number, minimum: 2, maximum: 1}}", "minimum 2.0 is above maximum 1.0"),
    ],
)
def test_a_mistake_is_one_line_that_names_agent_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "agents.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_agents(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
