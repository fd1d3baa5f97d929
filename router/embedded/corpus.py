"""The embedded base's corpus: tools with hand-written utterances, combined into function-calling episodes. No torch.

An episode declares some tools and asks for one of them, or for none. What is declared varies from episode to episode,
so that the model learns to choose among what it is shown: sometimes the tools as written, sometimes a few desks that
each stand for many tools of one kind, as the agents of a router do.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from router.agents import Agent, Parameter
from router.duplicates import near_duplicates
from router.errors import InputError
from router.functiongemma import Call, Value

DESKS_FILE = "_desks.yaml"
URGENCY = {"l": "low", "m": "medium", "h": "high"}
KINDS = ("fault", "money", "information", "action", "other")


@dataclass(frozen=True)
class Utterance:
    text: str
    urgency: str
    """low, medium or high"""
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Tool:
    domain: str
    kind: str
    agent: Agent
    utterances: tuple[Utterance, ...]


@dataclass(frozen=True)
class Desk:
    """Ways to speak of a desk that handles one kind of request."""

    names: tuple[str, ...]
    descriptions: tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    tools: list[Tool]
    desks: dict[str, Desk]
    urgency_names: tuple[str, ...]
    topic_names: tuple[str, ...]


@dataclass(frozen=True)
class Episode:
    """Declared agents, and messages with the call that answers each; None where no agent fits."""

    agents: list[Agent]
    messages: list[tuple[str, Call | None]]


def _value(text: str, parameter: Parameter, where: str) -> Any:
    if parameter.type == "boolean" and text in ("true", "false"):
        return text == "true"
    if parameter.type == "integer" and text.lstrip("-").isdecimal():
        return int(text)
    if problem := parameter.problem_with(text):
        raise InputError(f"{where}: {problem}")
    return text


def _tool(values: dict[str, Any], domain: str, path: Path) -> Tool:
    where = f"{path}: {values.get('name')}"
    if values.get("kind") not in KINDS:
        raise InputError(f"{where}: kind must be one of {', '.join(KINDS)}")
    try:
        agent = Agent(name=values["name"], description=values["description"], parameters=values["parameters"])
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    utterances = []
    for line in values["utterances"].splitlines():
        fields = line.strip().split(" | ")
        if not line.strip():
            continue
        if len(fields) != len(agent.parameters) + 2 or fields[0] not in URGENCY:
            raise InputError(
                f"{where}: {line!r}: must be urgency, {', '.join(agent.parameters)} and text, ' | ' between"
            )
        parameters = agent.parameters.items()
        arguments = {name: _value(v, p, where) for v, (name, p) in zip(fields[1:-1], parameters, strict=True)}
        utterances.append(Utterance(fields[-1], URGENCY[fields[0]], arguments))
    return Tool(domain, values["kind"], agent, tuple(utterances))


def load_corpus(folder: str | Path) -> Corpus:
    """Read every domain file of `folder`, and the desks.

    Raises:
        InputError: naming file, tool and line.
    """
    folder = Path(folder)
    yaml = YAML(typ="safe")
    tools: list[Tool] = []
    try:
        for path in sorted(folder.glob("[!_]*.yaml")):
            domain = yaml.load(path.read_text(encoding="utf-8"))
            tools += [_tool(values, domain["domain"], path) for values in domain["tools"]]
        desks = yaml.load((folder / DESKS_FILE).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None
    except YAMLError as error:
        raise InputError(f"{folder}: not valid YAML: {' '.join(str(error).split())}") from None
    kinds = {kind: Desk(tuple(desk["names"]), tuple(desk["descriptions"])) for kind, desk in desks["desks"].items()}
    return Corpus(tools, kinds, tuple(desks["urgency_names"]), tuple(desks["topic_names"]))


def check_apart(corpus: Corpus, texts: Sequence[str], agent_names: Sequence[str]) -> None:
    """Refuse a corpus that holds a text it will be measured on, exactly or nearly, or a tool named like an agent.

    Raises:
        InputError: naming the tool and the utterance.
    """
    for tool in corpus.tools:
        if tool.agent.name in agent_names:
            raise InputError(f"data/embedded: the tool {tool.agent.name} is named like an agent; rename it")
    utterances = [(tool, utterance.text) for tool in corpus.tools for utterance in tool.utterances]
    pairs = near_duplicates([text for _, text in utterances], texts)
    if pairs:
        i, j, similarity = pairs[0]
        tool, text = utterances[i]
        raise InputError(
            f"data/embedded: {len(pairs)} utterances are too close to queries that the base is measured on, first "
            f"{tool.domain}/{tool.agent.name}: {text!r} and {texts[j]!r} (similarity {similarity:.2f}); remove them"
        )


def _with_urgency(agent: Agent, name: str) -> Agent:
    """The agent with an urgency parameter beside its own, unless the name is taken."""
    urgency = Parameter(enum=("low", "medium", "high"), description="How pressing it is")
    return agent.model_copy(update={"parameters": {**agent.parameters, name: urgency}})


def tool_episode(corpus: Corpus, rng: random.Random, messages: int) -> Episode:
    """A few tools as they are written, mostly of one domain, sometimes with an urgency parameter."""
    count = rng.randint(2, 5)
    home = rng.choice(corpus.tools).domain
    near = [tool for tool in corpus.tools if tool.domain == home]
    chosen = rng.sample(near, k=min(len(near), count - 1))
    chosen += rng.sample([tool for tool in corpus.tools if tool not in chosen], k=max(count - len(chosen), 1))
    rng.shuffle(chosen)
    others = [tool for tool in corpus.tools if tool.domain != home and tool not in chosen]
    urgency_name = rng.choice(corpus.urgency_names) if rng.random() < 0.4 else None
    agents = [tool.agent if urgency_name is None else _with_urgency(tool.agent, urgency_name) for tool in chosen]
    asked: list[tuple[str, Call | None]] = []
    for _ in range(messages):
        if rng.random() < 0.1:
            asked.append((rng.choice(rng.choice(others).utterances).text, None))
            continue
        tool = rng.choice(chosen)
        utterance = rng.choice(tool.utterances)
        arguments = dict(utterance.arguments)
        if urgency_name is not None and urgency_name not in arguments:
            arguments[urgency_name] = utterance.urgency
        asked.append((utterance.text, Call(tool.agent.name, arguments)))
    return Episode(agents, asked)


def desk_episode(corpus: Corpus, rng: random.Random, messages: int) -> Episode:
    """Two to four desks, each for one kind of request, with a topic and an urgency; other kinds fit none."""
    present = [kind for kind in corpus.desks if any(tool.kind == kind for tool in corpus.tools)]
    kinds = rng.sample(present, k=min(len(present), rng.choice([2, 3, 4])))
    if rng.random() < 0.5:
        # What customers mostly write for: broken, paid, unsure. The other kinds then fit no desk.
        kinds = rng.sample(["fault", "money", "information"], k=3)
    urgency_name = rng.choice(corpus.urgency_names)
    agents, answers = [], []
    for kind in kinds:
        desk = corpus.desks[kind]
        pool = [tool for tool in corpus.tools if tool.kind == kind]
        covered = rng.sample(pool, k=min(len(pool), rng.randint(4, 10)))
        topic_name = rng.choice([name for name in corpus.topic_names if name != urgency_name])
        topics: dict[str, list[Utterance]] = {}
        for tool in covered:
            first = next(iter(tool.agent.parameters))
            fine = rng.random() < 0.5
            for utterance in tool.utterances:
                topics.setdefault(str(utterance.arguments[first]) if fine else tool.agent.name, []).append(utterance)
        names = rng.sample(sorted(topics), k=min(len(topics), 18 if rng.random() < 0.15 else 6))
        parameters = {
            topic_name: Parameter(enum=tuple(names), description="What it is about"),
            urgency_name: Parameter(enum=("low", "medium", "high"), description="How pressing it is"),
        }
        if rng.random() < 0.3:
            del parameters[urgency_name]
        agents.append(
            Agent(name=rng.choice(desk.names), description=rng.choice(desk.descriptions), parameters=parameters)
        )
        answers.append({name: topics[name] for name in names})
    if len({agent.name for agent in agents}) < len(agents):
        return desk_episode(corpus, rng, messages)
    others = [tool for tool in corpus.tools if tool.kind not in kinds]
    asked: list[tuple[str, Call | None]] = []
    for _ in range(messages):
        if others and rng.random() < 0.12:
            asked.append((rng.choice(rng.choice(others).utterances).text, None))
            continue
        place = rng.randrange(len(agents))
        topic = rng.choice(list(answers[place]))
        utterance = rng.choice(answers[place][topic])
        topic_name, *urgency = agents[place].parameters
        arguments: dict[str, Value] = {topic_name: topic, **dict.fromkeys(urgency, utterance.urgency)}
        asked.append((utterance.text, Call(agents[place].name, arguments)))
    return Episode(agents, asked)


def episode(corpus: Corpus, rng: random.Random, messages: int) -> Episode:
    return (desk_episode if rng.random() < 0.6 else tool_episode)(corpus, rng, messages)


def undeclared(corpus: Corpus, rng: random.Random) -> tuple[str, Call]:
    """A message with a call that fits it, of its own tool or of a desk of its kind, where nothing is declared."""
    tool = rng.choice(corpus.tools)
    utterance = rng.choice(tool.utterances)
    if rng.random() < 0.4:
        return utterance.text, Call(tool.agent.name, utterance.arguments)
    topic_name, urgency_name = corpus.topic_names[0], corpus.urgency_names[0]
    first = next(iter(tool.agent.parameters))
    topic = str(utterance.arguments[first]) if rng.random() < 0.5 else tool.agent.name
    arguments: dict[str, Value] = {topic_name: topic, urgency_name: utterance.urgency}
    return utterance.text, Call(rng.choice(corpus.desks[tool.kind].names), arguments)
