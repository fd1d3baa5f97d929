"""Labelled queries: read, validate, write; and their form as conversations (`messages` + `tools`). No torch."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from ruamel.yaml import YAML, YAMLError

from router.agents import Agent, Value
from router.errors import InputError
from router.params import first_problem

DECLINE = "No agent fits this message."
"""What the model is taught to answer where none of the agents fits: text instead of a call."""


class Example(BaseModel):
    """One labelled query. `agent` is None for a message that no agent fits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query: str
    agent: str | None
    arguments: dict[str, Value] = Field(default_factory=dict)
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


def check(values: Any, agents: Sequence[Agent], where: str, default_family: str) -> Example:
    """Validate one labelled query against the agents.

    Raises:
        InputError: naming `where` (file and line) and what is wrong.
    """
    if not isinstance(values, dict):
        raise InputError(f"{where}: must be an object with query, agent and arguments")
    if not values.get("family"):
        values = {**values, "family": default_family}
    try:
        example = Example.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}: {first_problem(error)}") from None
    if example.agent is None:
        if example.arguments:
            raise InputError(f"{where}: a query without an agent cannot have arguments")
        return example
    agent = next((agent for agent in agents if agent.name == example.agent), None)
    if agent is None:
        known = ", ".join(agent.name for agent in agents)
        raise InputError(f"{where}: unknown agent {example.agent!r} (known: {known})")
    if problem := agent.problem_with(example.arguments):
        raise InputError(f"{where}: {problem}")
    return example


def _open(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_open(path), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}:{number}: not valid JSON ({error.msg}, column {error.colno})") from None


def _csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(_open(path), strict=True)
    missing = {"query", "agent", "arguments"} - set(reader.fieldnames or ())
    if missing:
        raise InputError(f"{path}:1: missing column {', '.join(sorted(missing))}")
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise InputError(
                    f"{where}: has a different number of fields than the header; quote texts that hold a comma"
                )
            try:
                row["arguments"] = json.loads(row["arguments"] or "{}")
            except json.JSONDecodeError as error:
                raise InputError(f"{where}: arguments: not valid JSON ({error.msg}, column {error.colno})") from None
            row["agent"] = row["agent"] or None
            if "tags" in row:
                row["tags"] = row["tags"].split()
            if "variant" in row:
                row["variant"] = int(row["variant"]) if row["variant"].isdecimal() else row["variant"]
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not valid CSV ({error})") from None


def read_queries(path: str | Path, agents: Sequence[Agent]) -> list[Example]:
    """Read labelled queries from a .jsonl or .csv file (columns query, agent, arguments as JSON, family, tags).

    A query without a family is a family of its own.

    Raises:
        InputError: naming file and line.
    """
    path = Path(path)
    rows = _csv_rows(path) if path.suffix == ".csv" else _json_rows(path)
    examples = [check(row, agents, f"{path}:{number}", f"{path.stem}-{number}") for number, row in rows]
    if not examples:
        raise InputError(f"{path}: holds no query")
    return examples


def _yaml_items(path: Path) -> Any:
    """A YAML list, each item knowing its line (ruamel's round-trip loader keeps it in `.lc`)."""
    try:
        items = YAML(typ="rt").load("\n".join(_open(path)))
    except YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(items, list) or not items:
        raise InputError(f"{path}: must be a list of at least one item")
    return items


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
    examples = []
    paths = sorted(Path(folder).glob("*.yaml"))
    if not paths:
        raise InputError(f"{folder}: holds no .yaml file")
    families: dict[str, str] = {}
    for path in paths:
        for family in _yaml_items(path):
            where = f"{path}:{family.lc.line + 1}" if hasattr(family, "lc") else str(path)
            if not isinstance(family, dict) or set(family) != {"family", "agent", "queries"}:
                raise InputError(f"{where}: must have exactly family, agent and queries")
            name = family["family"]
            if name in families:
                raise InputError(f"{where}: family {name!r} stands already at {families[name]}")
            families[name] = where
            for query in family["queries"]:
                where = f"{path}:{query.lc.line + 1}"
                values = _plain(query)
                if "text" not in values:
                    raise InputError(f"{where}: text: missing")
                values = {"query": values.pop("text"), "agent": family["agent"], "family": name, **values}
                examples.append(check(values, agents, where, name))
    return examples


def read_out_of_scope(path: str | Path) -> list[Example]:
    """Read messages that no agent fits: a YAML list of `text` and `tags`, each a family of its own."""
    path = Path(path)
    examples = []
    for number, item in enumerate(_yaml_items(path), start=1):
        where = f"{path}:{item.lc.line + 1}" if hasattr(item, "lc") else str(path)
        values = _plain(item)
        if not isinstance(values, dict) or "text" not in values:
            raise InputError(f"{where}: text: missing")
        values = {"query": values.pop("text"), "agent": None, **values}
        examples.append(check(values, [], where, f"{path.stem}-{number}"))
    return examples


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
