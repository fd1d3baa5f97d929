"""The embedded base's corpus: tools with hand-written utterances, combined into function-calling episodes. No torch.

An episode declares some tools and asks for one of them, or for none. What is declared varies from episode to episode,
so that the model learns to choose among what it is shown: sometimes the tools as written, sometimes a few desks that
each stand for all requests of one kind, as the agents of a router do. Every message is filed by hand under an entry of
its desk's menu, or under two: what kind of question it is, and about what. It also goes by several other names. A desk
declares some of either: so the model learns which words mean the same.
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
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
WRITTEN_FOR = ("fault", "money", "information")
"""What customers mostly write for: something broken, something paid, something they want to know."""
NAMES = 6
"""First names of a desk, the only ones that answer a message which is read alone."""
FILED = 0.9
"""How often a desk goes by its menus, and not by the other names."""
STRAY = "other"
"""The kind of what no desk of a company can do anything with."""
STRAYS = 0.1
"""How many of the messages that are read alone are such."""


@dataclass(frozen=True)
class Utterance:
    text: str
    urgency: str
    """low, medium or high"""
    kind: str
    filed: tuple[str, ...]
    """One entry of each menu of its kind's desk; empty where none fits."""
    arguments: dict[str, Any]
    topics: tuple[str, ...]
    """Other names under which a desk might file it."""


@dataclass(frozen=True)
class Tool:
    domain: str
    kind: str
    agent: Agent
    utterances: tuple[Utterance, ...]


@dataclass(frozen=True)
class Menu:
    """What a desk files its messages under, and names for the parameter that says so; a desk's menus share none."""

    names: tuple[str, ...]
    entries: tuple[str, ...]


@dataclass(frozen=True)
class Desk:
    """Ways to speak of a desk that handles one kind of request."""

    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    menus: tuple[Menu, ...]


@dataclass(frozen=True)
class Corpus:
    tools: list[Tool]
    desks: dict[str, Desk]
    urgency_names: tuple[str, ...]
    topic_names: tuple[str, ...]

    @cached_property
    def requests(self) -> dict[str, list[tuple[Tool, Utterance]]]:
        """Utterances, with the tools they belong to, by their kind."""
        found: dict[str, list[tuple[Tool, Utterance]]] = {}
        for tool in self.tools:
            for utterance in tool.utterances:
                found.setdefault(utterance.kind, []).append((tool, utterance))
        return found

    @cached_property
    def filed(self) -> dict[str, dict[str, list[tuple[Tool, Utterance]]]]:
        """The same by each entry that they are filed under."""
        found: dict[str, dict[str, list[tuple[Tool, Utterance]]]] = {kind: {} for kind in self.requests}
        for kind, requests in self.requests.items():
            for tool, utterance in requests:
                for entry in utterance.filed:
                    found[kind].setdefault(entry, []).append((tool, utterance))
        return found


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


def _filed(text: str, desks: dict[str, Desk], where: str) -> tuple[str | None, tuple[str, ...]]:
    """The kind of request that entries belong to, and they themselves; None and none for a dash."""
    entries = tuple(text.split())
    if entries == ("-",):
        return None, ()
    for kind, desk in desks.items():
        if len(entries) == len(desk.menus) and all(
            entry in menu.entries for entry, menu in zip(entries, desk.menus, strict=True)
        ):
            return kind, entries
    raise InputError(f"{where}: {text!r} is not an entry of each menu of a desk in {DESKS_FILE}, nor a dash")


def _tool(values: dict[str, Any], domain: str, desks: dict[str, Desk], path: Path) -> Tool:
    where = f"{path}: {values.get('name')}"
    if values.get("kind") not in KINDS:
        raise InputError(f"{where}: kind must be one of {', '.join(KINDS)}")
    try:
        agent = Agent(name=values["name"], description=values["description"], parameters=values["parameters"])
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    subject = next((name for name, parameter in agent.parameters.items() if parameter.enum), None)
    topics = {value: tuple(map(str, names)) for value, names in (values.get("topics") or {}).items()}
    declared = agent.parameters[subject].enum if subject else ()
    if set(topics) != set(declared):
        raise InputError(f"{where}: topics must name every value of {subject}: {', '.join(map(str, declared))}")
    utterances = []
    for line in values["utterances"].splitlines():
        fields = line.strip().split(" | ")
        if not line.strip():
            continue
        if len(fields) != len(agent.parameters) + 3 or fields[0] not in URGENCY:
            raise InputError(
                f"{where}: {line!r}: must be urgency, entries, {', '.join(agent.parameters)} and text, ' | ' between"
            )
        kind, filed = _filed(fields[1], desks, where)
        parameters = agent.parameters.items()
        arguments = {name: _value(v, p, where) for v, (name, p) in zip(fields[2:-1], parameters, strict=True)}
        names = topics[arguments[subject]] if subject in arguments else (agent.name,)
        utterances.append(Utterance(fields[-1], URGENCY[fields[0]], kind or values["kind"], filed, arguments, names))
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
        shared = yaml.load((folder / DESKS_FILE).read_text(encoding="utf-8"))
        desks = {
            kind: Desk(
                tuple(desk["names"]),
                tuple(desk["descriptions"]),
                tuple(Menu(tuple(menu["names"]), tuple(menu["entries"])) for menu in desk.get("menus", ())),
            )
            for kind, desk in shared["desks"].items()
        }
        for path in sorted(folder.glob("[!_]*.yaml")):
            domain = yaml.load(path.read_text(encoding="utf-8"))
            tools += [_tool(values, domain["domain"], desks, path) for values in domain["tools"]]
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None
    except YAMLError as error:
        raise InputError(f"{folder}: not valid YAML: {' '.join(str(error).split())}") from None
    names = [tool.agent.name for tool in tools]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"{folder}: two tools are named {min(twice)}; rename one")
    return Corpus(tools, desks, tuple(shared["urgency_names"]), tuple(shared["topic_names"]))


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


def stray(corpus: Corpus, kinds: Collection[str], rng: random.Random) -> str | None:
    """A message that no desk for `kinds` can do anything with: of another kind, mostly one that fits no desk at all."""
    present = set(corpus.requests) - set(kinds)
    if not present:
        return None
    kind = STRAY if STRAY in present and rng.random() < 0.7 else rng.choice(sorted(present))
    return rng.choice(corpus.requests[kind])[1].text


def desk(corpus: Corpus, kind: str, rng: random.Random) -> tuple[Agent, dict[tuple[str, ...], list[Utterance]]]:
    """A desk for one kind of request, and the messages that it handles by what a call would give as its topics.

    It declares some entries of each of its menus; or else a few of the other names that its messages go by, under one
    parameter or, from two sides, under two. A message of which no declared topic speaks, or more than one, is not
    among them.
    """
    requests = corpus.requests[kind]
    menus = corpus.desks[kind].menus
    by_menus = bool(menus) and rng.random() < FILED
    declared: dict[str, list[str]] = {}
    if by_menus:
        for menu in menus:
            count = min(len(menu.entries), rng.choice([6, 12, 20]))
            declared[rng.choice(menu.names)] = rng.sample(menu.entries, count)
    else:
        for name in rng.sample(corpus.topic_names, k=2 if rng.random() < 0.3 else 1):
            drawn = {rng.choice(rng.choice(requests)[1].topics) for _ in range(rng.choice([4, 8, 12, 24]))}
            declared[name] = sorted(drawn)
    urgency_name = rng.choice(corpus.urgency_names) if rng.random() < 0.7 else None
    name = rng.choice(corpus.desks[kind].names)

    @cache  # many messages go by the same names
    def chosen(names: tuple[str, ...]) -> tuple[str, ...] | None:
        fitting = [[topic for topic in topics if topic in names] for topics in declared.values()]
        return tuple(topic for (topic,) in fitting) if all(len(topics) == 1 for topics in fitting) else None

    handled: dict[tuple[str, ...], list[Utterance]] = {}
    for _, utterance in requests:
        if topics := chosen(utterance.filed if by_menus else utterance.topics):
            handled.setdefault(topics, []).append(utterance)
    if len(handled) < 2:
        return desk(corpus, kind, rng)
    parameters = {
        parameter: Parameter(enum=tuple(topics), description="What it is about")
        for parameter, topics in declared.items()
    }
    if urgency_name:
        parameters[urgency_name] = Parameter(enum=tuple(URGENCY.values()), description="How pressing it is")
    return Agent(name=name, description=rng.choice(corpus.desks[kind].descriptions), parameters=parameters), handled


def desk_episode(corpus: Corpus, rng: random.Random, messages: int) -> Episode:
    """Two to four desks, each for one kind of request; messages of other kinds fit none."""
    present = [kind for kind in corpus.desks if kind in corpus.requests]
    kinds = rng.sample(present, k=min(len(present), rng.choice([2, 3, 4])))
    if rng.random() < 0.5:
        kinds = rng.sample(WRITTEN_FOR, k=len(WRITTEN_FOR))
    desks = [desk(corpus, kind, rng) for kind in kinds]
    asked: list[tuple[str, Call | None]] = []
    for _ in range(messages):
        text = stray(corpus, kinds, rng) if rng.random() < 0.15 else None
        if text is not None:
            asked.append((text, None))
            continue
        agent, handled = rng.choice(desks)
        # First a topic, then a message: so the frequent topics do not crowd out the others.
        topics = rng.choice(list(handled))
        utterance = rng.choice(handled[topics])
        # The last parameter may be the urgency.
        arguments = zip(agent.parameters, (*topics, utterance.urgency), strict=False)
        asked.append((utterance.text, Call(agent.name, dict(arguments))))
    return Episode([agent for agent, _ in desks], asked)


def episode(corpus: Corpus, rng: random.Random, messages: int) -> Episode:
    return (desk_episode if rng.random() < 0.7 else tool_episode)(corpus, rng, messages)


def _less_unevenly(groups: dict[str, list[tuple[Tool, Utterance]]], rng: random.Random) -> str:
    """One of the groups: a large one oftener, but less than it is larger, for the small ones have fewer texts."""
    (name,) = rng.choices(list(groups), [len(members) ** 0.5 for members in groups.values()])
    return name


def one_message(corpus: Corpus, rng: random.Random) -> tuple[Tool, Utterance]:
    """Any message with its tool: some that fit no desk, the others drawn by their kind and the entry they go under."""
    if rng.random() < STRAYS:
        return rng.choice(corpus.requests[STRAY])
    kind = _less_unevenly({kind: of_it for kind, of_it in corpus.requests.items() if kind != STRAY}, rng)
    entries = corpus.filed[kind]
    return rng.choice(entries[_less_unevenly(entries, rng)] if entries else corpus.requests[kind])


def undeclared(corpus: Corpus, tool: Tool, utterance: Utterance, rng: random.Random) -> Call | None:
    """An answer that fits a message where nothing is declared: a call of its own tool or of a desk of its kind.

    What fits no desk at all is declined.
    """
    if utterance.kind == STRAY:
        return None
    arguments: dict[str, Value] = {}
    if utterance.filed and rng.random() < FILED:
        for menu, entry in zip(corpus.desks[utterance.kind].menus, utterance.filed, strict=True):
            arguments[rng.choice(menu.names)] = entry
    elif rng.random() < 0.3:
        return Call(tool.agent.name, utterance.arguments)
    else:
        topics = rng.sample(utterance.topics, k=min(len(utterance.topics), 2))
        arguments |= zip(rng.sample(corpus.topic_names, k=len(topics)), topics, strict=True)
    arguments[rng.choice(corpus.urgency_names)] = utterance.urgency
    # Of the many names that a desk can have only a few: what is to be learned here is the kind.
    return Call(rng.choice(corpus.desks[utterance.kind].names[:NAMES]), arguments)
