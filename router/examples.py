"""Labelled queries: read, validate, write; and their form as conversations (`messages` + `tools`). No torch."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticSerializationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError

from router.agents import Agent
from router.errors import InputError
from router.params import first_problem

DECLINE = "No agent fits this message."
"""What the model is taught to answer where none of the agents fits: text instead of a call."""


class Example(BaseModel):
    """One labelled query. `agent` is None for a message that no agent fits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query: str
    agent: str | None
    arguments: dict[str, Any] = Field(default_factory=dict)
    family: str
    """Paraphrases of one request share a family, and a family never straddles two splits."""
    tags: tuple[str, ...] = ()
    variant: int = 0
    """0 for a query as it was written, 1, 2, ... for its rewritten copies."""

    @field_validator("query")
    @classmethod
    def _not_empty(cls, query: str) -> str:
        if not query.strip():
            raise ValueError("the query is empty")
        return query.strip()


def _example(values: dict[str, Any], where: str) -> Example:
    try:
        return Example.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}: {first_problem(error)}") from None


def check(values: Any, agents: Sequence[Agent], where: str) -> Example:
    """Validate one labelled query against the agents. Without a family it becomes a family of its own.

    Raises:
        InputError: naming `where` (file and line) and what is wrong.
    """
    if not isinstance(values, dict):
        raise InputError(f"{where}: must be an object with query, agent and arguments")
    example = _example({**values, "family": values.get("family") or where}, where)
    agent = next((agent for agent in agents if agent.name == example.agent), None)
    if agent is None:
        known = ", ".join(agent.name for agent in agents)
        raise InputError(f"{where}: unknown agent {example.agent!r} (known: {known})")
    if problem := agent.problem_with(example.arguments):
        raise InputError(f"{where}: {problem}")
    try:
        example.model_dump_json()
    except PydanticSerializationError:
        raise InputError(f"{where}: holds half of a surrogate pair, which is no character; remove it") from None
    return example


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise InputError(f"{where}: not usable JSON ({error})") from None


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    # Not splitlines(): it also splits at characters that JSON allows inside a text, such as U+2028.
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            yield number, _parsed(line, f"{path}:{number}")


def _csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(_text(path)), strict=True)
    try:
        missing = {"query", "agent", "arguments"} - set(reader.fieldnames or ())
        if missing:
            raise InputError(f"{path}:1: missing column {', '.join(sorted(missing))}")
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise InputError(
                    f"{where}: has a different number of fields than the header; quote texts that hold a comma"
                )
            row["arguments"] = _parsed(row["arguments"] or "{}", f"{where}: arguments")
            if "tags" in row:
                row["tags"] = row["tags"].split()
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}:{reader.reader.line_num}: not valid CSV ({error})") from None


def read_queries(path: str | Path, agents: Sequence[Agent]) -> list[Example]:
    """Read labelled queries from a .jsonl or .csv file (columns query, agent, arguments as JSON, family, tags).

    Raises:
        InputError: naming file and line.
    """
    path = Path(path)
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path)
    examples = [check(row, agents, f"{path}:{number}") for number, row in rows]
    if not examples:
        raise InputError(f"{path}: holds no query")
    return examples


def _yaml_list(path: Path) -> Any:
    try:
        return YAML(typ="rt").load(_text(path))  # the round-trip loader: its lists know their lines
    except YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def _objects(items: Any, where: str, path: Path, keys: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a YAML list, plain, and where each stands. Each must have `keys`, and may have `tags`."""
    if not isinstance(items, CommentedSeq) or not items:
        raise InputError(f"{where}: must be a list of at least one item")
    for place, item in enumerate(items):
        where = f"{path}:{items.lc.item(place)[0] + 1}"
        if not isinstance(item, CommentedMap) or set(item) - {"tags"} != keys:
            raise InputError(f"{where}: must have exactly {', '.join(sorted(keys))} (and tags, if any)")
        yield where, dict(item)


def _plain(value: Any) -> Any:
    """ruamel's round-trip containers as plain dicts and lists."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def read_bank(folder: str | Path, agents: Sequence[Agent]) -> list[Example]:
    """Read the hand-written query bank: every .yaml file of `folder`, each a list of families.

    Raises:
        InputError: naming file and line.
    """
    paths = sorted(Path(folder).glob("*.yaml"))
    if not paths:
        raise InputError(f"{folder}: holds no .yaml file")
    examples = []
    families: dict[str, str] = {}
    for path in paths:
        for place, family in _objects(_yaml_list(path), str(path), path, {"family", "agent", "queries"}):
            name = str(family["family"])
            if name in families:
                raise InputError(f"{place}: family {name!r} stands already at {families[name]}")
            families[name] = place
            for where, query in _objects(family["queries"], f"{place}: queries", path, {"text", "arguments"}):
                values = {"query": query.pop("text"), "agent": family["agent"], "family": name, **_plain(query)}
                examples.append(check(values, agents, where))
    return examples


def read_out_of_scope(path: str | Path) -> list[Example]:
    """Read messages that no agent fits: a YAML list of `text` and `tags`, each a family of its own.

    Raises:
        InputError: naming file and line.
    """
    path = Path(path)
    return [
        _example({"query": item["text"], "agent": None, "family": where, "tags": item.get("tags", [])}, where)
        for where, item in _objects(_yaml_list(path), str(path), path, {"text"})
    ]


def write_jsonl(rows: Iterable[dict[str, Any]], path: str | Path) -> None:
    """One JSON object a line, as it is read: characters kept, newline at the end."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    Path(path).write_text(text, encoding="utf-8")


def conversation(example: Example, agents: Sequence[Agent], system: str) -> dict[str, Any]:
    """The example as TRL and `datasets` expect it: `messages` and `tools`, beside family and tags."""
    answer: dict[str, Any] = {"role": "assistant", "content": DECLINE}
    if example.agent is not None:
        function = {"name": example.agent, "arguments": dict(example.arguments)}
        answer = {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}
    return {
        "messages": [
            {"role": "developer", "content": system},
            {"role": "user", "content": example.query},
            answer,
        ],
        "tools": [agent.tool_schema() for agent in agents],
        "family": example.family,
        "tags": list(example.tags),
    }


def read_conversations(path: str | Path) -> list[Example]:
    """Read back what `conversation` made, as labelled queries (a split that the pipeline wrote itself).

    Raises:
        InputError: naming file and line.
    """
    examples = []
    for number, row in _json_rows(Path(path)):
        try:
            _, user, answer = row["messages"]
            call = answer["tool_calls"][0]["function"] if "tool_calls" in answer else {"name": None, "arguments": {}}
            example = Example(
                query=user["content"],
                agent=call["name"],
                arguments=call["arguments"],
                family=row["family"],
                tags=tuple(row["tags"]),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"{path}:{number}: not a conversation of this pipeline ({error!r})") from None
        examples.append(example)
    return examples
