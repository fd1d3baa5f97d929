"""Labelled queries: what is read, what is written, and that every mistake is one line that says where it stands."""

import json
from pathlib import Path

import pytest

from router.agents import Agent, Parameter, load_agents
from router.errors import InputError
from router.examples import (
    DECLINE,
    Example,
    conversation,
    read_bank,
    read_conversations,
    read_out_of_scope,
    read_queries,
    write_jsonl,
)

AGENTS = load_agents(Path(__file__).parent.parent / "agents.yaml")
GOOD = {
    "query": "I was charged twice",
    "agent": "billing_agent",
    "arguments": {"request_type": "dispute", "urgency": "high"},
}
ARGUMENTS = '{"request_type": "dispute", "urgency": "high"}'
QUOTED = '"' + ARGUMENTS.replace('"', '""') + '"'


def failure(path: Path, text: str | bytes) -> str:
    """What reading `text` from `path` says, without the folder; one line."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(InputError) as caught:
        read_queries(path, AGENTS)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(f"{path.parent}/")


def line(**changes: object) -> str:
    return json.dumps(GOOD | changes)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line(agent="sales_agent"), "unknown agent 'sales_agent' (known: technical_support_agent, billing_agent, "),
        (line(agent=None), "unknown agent None"),
        (line(arguments={"urgency": "high"}), "argument 'request_type' of billing_agent is missing"),
        (line(arguments={}), "argument 'request_type' of billing_agent is missing"),
        (line(arguments=GOOD["arguments"] | {"tone": "angry"}), "billing_agent has no argument 'tone'"),  # type: ignore[operator]
        (
            line(arguments={"request_type": "quarrel", "urgency": "high"}),
            "argument 'request_type' of billing_agent: 'quarrel' is not one of account_credit, ",
        ),
        (line(arguments={"request_type": "dispute", "urgency": None}), "argument 'urgency' of billing_agent: None"),
        (line(arguments=ARGUMENTS), "arguments: Input should be a valid dictionary"),
        (line(query=""), "query: the query is empty"),
        (line(query=" \t "), "query: the query is empty"),
        (line(query=None), "query: Input should be a valid string (got None)"),
        (line(query="\ud800"), "holds half of a surrogate pair"),
        (line(intent="x"), "intent: unknown key"),
        (line(tags="long"), "tags: "),
        ('{"agent": "billing_agent", "arguments": {}}', "query: missing"),
        ('{"query": "x"}', "agent: missing"),
        ("[1, 2]", "must be an object with query, agent and arguments"),
        ('{"query": "I was', "not valid JSON (Unterminated string starting at, column 11)"),
        ("{'query': 'x'}", "not valid JSON ("),
        ("[" * 100_000, "not usable JSON ("),
    ],
)
def test_a_bad_line_of_json_is_told_by_file_and_line(tmp_path: Path, bad: str, message: str) -> None:
    assert failure(tmp_path / "q.jsonl", f"{line()}\n\n{bad}\n").startswith(f"q.jsonl:3: {message}")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (f"x,sales_agent,{QUOTED}", "unknown agent 'sales_agent'"),
        (f"x,,{QUOTED}", "unknown agent ''"),
        (f",billing_agent,{QUOTED}", "query: the query is empty"),
        ("x,billing_agent,", "argument 'request_type' of billing_agent is missing"),
        ("x,billing_agent,{broken", "arguments: not valid JSON ("),
        (f"I, too, was charged,billing_agent,{QUOTED}", "has a different number of fields than the header"),
        ("x,billing_agent", "has a different number of fields than the header"),
        (f'"x"y,billing_agent,{QUOTED}', "not valid CSV ("),
    ],
)
def test_a_bad_line_of_csv_is_told_by_file_and_line(tmp_path: Path, bad: str, message: str) -> None:
    text = f"query,agent,arguments\nfine,billing_agent,{QUOTED}\n{bad}\n"
    assert failure(tmp_path / "q.csv", text).startswith(f"q.csv:3: {message}")


def test_a_bad_file_is_told_by_its_name(tmp_path: Path) -> None:
    assert failure(tmp_path / "a.csv", "query,label\nx,y\n") == "a.csv:1: missing column agent, arguments"
    assert failure(tmp_path / "b.csv", "") == "b.csv:1: missing column agent, arguments, query"
    assert failure(tmp_path / "c.csv", "query,agent,arguments\n") == "c.csv: holds no query"
    assert failure(tmp_path / "d.jsonl", "\n \n") == "d.jsonl: holds no query"
    assert failure(tmp_path / "e.jsonl", b"\xff\xfe{}") == "e.jsonl: not UTF-8 text (byte 0); save it as UTF-8"
    with pytest.raises(InputError, match=r"nowhere\.jsonl: cannot be read \(No such file"):
        read_queries(tmp_path / "nowhere.jsonl", AGENTS)


def test_json_and_csv_of_the_same_queries_read_the_same(tmp_path: Path) -> None:
    odd = 'two\nlines, a "quote"\u2028 and é🙂'
    rows = [GOOD | {"family": "f"}, GOOD | {"query": odd, "family": "g", "tags": ["long", "edge"]}]
    write_jsonl(rows, tmp_path / "q.jsonl")
    quoted = odd.replace('"', '""')
    (tmp_path / "q.CSV").write_text(
        f"\ufeffquery,agent,arguments,family,tags\r\nI was charged twice,billing_agent,{QUOTED},f,\r\n"
        f'"{quoted}",billing_agent,{QUOTED},g,long edge\r\n',
        encoding="utf-8",
        newline="",
    )
    from_json = read_queries(tmp_path / "q.jsonl", AGENTS)
    assert [example.query for example in from_json] == [GOOD["query"], odd]
    assert read_queries(tmp_path / "q.CSV", AGENTS) == from_json


def test_a_query_without_a_family_is_one_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(f"{line()}\n{line(query='other', family='')}\n")
    assert len({example.family for example in read_queries(tmp_path / "q.jsonl", AGENTS)}) == 2


FAMILY = "- family: f\n  agent: billing_agent\n  queries:\n"
QUERY = "    - text: where is my money\n      arguments: {request_type: refund, urgency: low}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FAMILY + QUERY + FAMILY + QUERY, "b.yaml:6: family 'f' stands already at b.yaml:1"),
        (FAMILY + QUERY + QUERY.replace("refund", "revenge"), "b.yaml:6: argument 'request_type'"),
        (FAMILY.replace("billing", "sales") + QUERY, "b.yaml:4: unknown agent 'sales_agent'"),
        (FAMILY + QUERY.replace("where is my money", "''"), "b.yaml:4: query: the query is empty"),
        (FAMILY + QUERY.replace("where is my money", "2024"), "b.yaml:4: query: Input should be a valid string"),
        (FAMILY + QUERY.replace("text", "txt"), "b.yaml:4: must have exactly arguments, text"),
        (FAMILY + "    - where is my money\n", "b.yaml:4: must have exactly arguments, text"),
        (FAMILY, "b.yaml:1: queries: must be a list"),
        ("- family: f\n", "b.yaml:1: must have exactly agent, family, queries"),
        ("- f\n", "b.yaml:1: must have exactly agent, family, queries"),
        ("f: g\n", "b.yaml: must be a list"),
        ("", "b.yaml: must be a list"),
        ("- [", "b.yaml: not valid YAML: "),
    ],
)
def test_a_mistake_in_the_bank_is_told_by_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "b.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_bank(tmp_path, AGENTS)
    told = str(caught.value).replace(f"{tmp_path}/", "")
    assert told.startswith(message)
    assert "\n" not in told


def test_a_bank_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no \.yaml file"):
        read_bank(tmp_path, AGENTS)


def test_out_of_scope_messages_have_no_agent(tmp_path: Path) -> None:
    path = tmp_path / "o.yaml"
    path.write_text("- text: tell me a joke\n  tags: [terse]\n- text: any jobs?\n")
    first, second = read_out_of_scope(path)
    assert (first.agent, first.arguments, first.tags, second.query) == (None, {}, ("terse",), "any jobs?")
    assert first.family != second.family
    path.write_text("- text: fine\n- text: ''\n")
    with pytest.raises(InputError, match=r"o\.yaml:2: query: the query is empty"):
        read_out_of_scope(path)


def test_conversations_read_back_as_the_queries_they_were_made_of(tmp_path: Path) -> None:
    agent = Agent(name="a", description="", parameters={"n": Parameter(type="integer"), "b": Parameter(type="boolean")})
    examples = [
        Example(query="first\u2028line", agent="a", arguments={"n": 1, "b": True}, family="f", tags=("long",)),
        Example(query="nobody's", agent=None, family="g"),
    ]
    rows = [conversation(example, [agent], "system") for example in examples]
    assert [message["role"] for message in rows[0]["messages"]] == ["developer", "user", "assistant"]
    assert rows[1]["messages"][-1] == {"role": "assistant", "content": DECLINE}
    assert rows[0]["tools"] == [agent.tool_schema()]
    write_jsonl(rows, tmp_path / "c.jsonl")
    read = read_conversations(tmp_path / "c.jsonl")
    assert read == examples
    assert [type(value) for value in read[0].arguments.values()] == [int, bool]


def test_a_broken_conversation_is_told_by_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"messages": []}\n')
    with pytest.raises(InputError, match=r"c\.jsonl:1: not a conversation"):
        read_conversations(tmp_path / "c.jsonl")
