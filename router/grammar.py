"""The valid answers as an automaton over tokens: from every state, the tokens that may come next. No torch.

Built from the agents back to front. Only the text between two control tokens, and each value, is tokenised as one
piece (`functiongemma.pieces`), exactly as in training; so a state's edges are the first tokens of what can follow.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from router.agents import FRACTION_DIGITS, INTEGER_DIGITS, Agent, Parameter
from router.encoding import Encoder
from router.errors import InputError
from router.functiongemma import ESCAPE, START_CALL

AGENT = "<agent>"
"""`decides` of a state where the agent, or that none fits, is chosen. Not a possible name of a parameter."""


@dataclass(eq=False)
class State:
    """A place in an answer.

    `edges` maps each token that may come next to the state behind it. Where `text` is set, any token of
    `Grammar.text_tokens` may come too and leads there. No edges and no text: the answer is complete.
    """

    decides: str = ""
    """What a choice here settles: AGENT, a parameter's name, or "" for which parameter comes next."""
    edges: dict[int, "State"] = field(default_factory=dict)
    text: "State | None" = None
    owner: str | None = None
    """The agent, once no other can be reached; "" where no agent fits."""

    @property
    def is_choice(self) -> bool:
        return self.text is not None or len(self.edges) > 1

    def forced(self) -> "tuple[list[int], State]":
        """The tokens that must come next, and the choice (or the end) behind them."""
        tokens, state = [], self
        while len(state.edges) == 1 and state.text is None:
            ((token, state),) = state.edges.items()
            tokens.append(token)
        return tokens, state


@dataclass(frozen=True)
class Option:
    """One way on: these tokens, then that state."""

    tokens: tuple[int, ...]
    state: State


def join(options: Sequence[Option], decides: str = "", owners: Sequence[str | None] | None = None) -> State:
    """Merge options into a tree whose shared first tokens are shared.

    `owners` names the agent of each option: states that only one agent's options reach belong to it.
    """
    owners = owners or [None] * len(options)
    owner = owners[0] if len(set(owners)) == 1 else None
    if len(options) == 1 and not options[0].tokens:
        state = copy.copy(options[0].state)
        state.owner = owner
        return state
    groups: dict[int, list[tuple[Option, str | None]]] = {}
    for option, its_owner in zip(options, owners, strict=True):
        # An option that ends where another goes on ("tags:[" beside "tags:[]") goes on with what is behind it.
        behind = [Option((token,), state) for token, state in option.state.edges.items()]
        for longer in [option] if option.tokens else behind:
            rest = Option(longer.tokens[1:], longer.state)
            groups.setdefault(longer.tokens[0], []).append((rest, its_owner))
    edges = {
        token: join([option for option, _ in group], decides, [owner for _, owner in group])
        for token, group in groups.items()
    }
    return State("" if owner is not None else decides, edges, owner=owner)


class Number:
    """Which characters can go on with a number so that it ends within its bounds."""

    def __init__(self, name: str, parameter: Parameter) -> None:
        self.fraction_digits = FRACTION_DIGITS if parameter.type == "number" else 0
        scale = 10**self.fraction_digits
        self.low = -math.inf if parameter.minimum is None else math.ceil(Fraction(parameter.minimum) * scale)
        self.high = math.inf if parameter.maximum is None else math.floor(Fraction(parameter.maximum) * scale)
        if self.low > self.high or not self.next_characters(""):
            raise InputError(
                f"parameter {name}: no number of at most {INTEGER_DIGITS} digits and {self.fraction_digits} decimals "
                f"lies between {parameter.minimum} and {parameter.maximum}"
            )

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Ranges of the values that `text` can grow into, in units of the last decimal place."""
        sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
        whole, _, fraction = digits.partition(".")
        unit = 10**self.fraction_digits
        if "." in digits:
            free = 10 ** (self.fraction_digits - len(fraction))
            low = int(whole) * unit + int(fraction or 0) * free
            spans = [(low, low + free - 1)]
        else:
            more = range(1) if whole == "0" else range(INTEGER_DIGITS - len(whole) + 1)
            spans = [(int(whole) * 10**k * unit, (int(whole) + 1) * 10**k * unit - 1) for k in more]
        return spans if sign > 0 else [(-high, -low) for low, high in spans]

    def _can_start(self, text: str) -> bool:
        return any(low <= self.high and high >= self.low for low, high in self._spans(text))

    def is_complete(self, text: str) -> bool:
        """Whether `text` is a whole number within the bounds."""
        if not text[-1:].isdecimal() or text == "-0" or (text.startswith("-0.") and not text.strip("-0.")):
            return False
        return bool(self.low <= Fraction(text) * 10**self.fraction_digits <= self.high)

    def next_characters(self, text: str) -> str:
        """The characters after which `text` can still become a number within the bounds."""
        allowed = [digit for digit in "0123456789" if self._digit_fits(text, digit)]
        if text == "" and any(self._digit_fits("-", digit) for digit in "0123456789"):
            allowed.append("-")
        if (
            text[-1:].isdecimal()
            and "." not in text
            and any(self._digit_fits(text + ".", digit) for digit in "0123456789")
        ):
            allowed.append(".")
        return "".join(allowed)

    def _digit_fits(self, text: str, digit: str) -> bool:
        whole, point, fraction = text.removeprefix("-").partition(".")
        if point and len(fraction) >= self.fraction_digits:
            return False
        if not point and (whole == "0" or len(whole) >= INTEGER_DIGITS):
            return False
        if text == "-" and digit == "0" and not self.fraction_digits:
            return False
        if not self._can_start(text + digit):
            return False
        # "-0", "-0.0", ...: worth writing only if another digit than 0 can still follow.
        return bool((text + digit).strip("-0.")) or not text.startswith("-") or bool(self.next_characters(text + digit))


class NumberState(State):
    """Inside a number; its edges are worked out when asked for, since all of them would be too many."""

    def __init__(self, name: str, number: Number, text: str, then: State, digits: dict[str, int]) -> None:
        self.decides, self.text, self.owner = name, None, None
        self._number, self._so_far, self._then, self._digits = number, text, then, digits

    @property  # not cached: the numbers that have been written would pile up
    def edges(self) -> dict[int, State]:  # type: ignore[override]
        edges = dict(self._then.edges) if self._number.is_complete(self._so_far) else {}
        for character in self._number.next_characters(self._so_far):
            state = NumberState(self.decides, self._number, self._so_far + character, self._then, self._digits)
            edges[self._digits[character]] = state
        return edges


@dataclass(frozen=True)
class Leaf:
    """A way from the root to the first state that only one agent's calls reach."""

    owner: str
    path: tuple[int, ...]
    state: State
    taken: tuple[tuple[int, int], ...]
    """The choices on the way: index in `Grammar.agent_choices`, token taken."""


class Grammar:
    """The automaton of one set of agents under one tokenizer."""

    def __init__(self, agents: Sequence[Agent], encoder: Encoder, decline: str) -> None:
        self._encoder = encoder
        self._escape = encoder.control[ESCAPE]
        self._end = State()
        options, owners = [], []
        for agent in agents:
            for tokens, state in _Arguments(agent, self).after(0, f"call:{agent.name}{{", written=False):
                options.append(Option((encoder.control[START_CALL], *encoder.text(tokens)), state))
                owners.append(agent.name)
        options.append(Option(tuple(encoder.decline(decline)), self._end))
        owners.append("")
        self.root = join(options, AGENT, owners)
        self.text_tokens = _text_tokens(encoder)
        """Ids that a free text may consist of, ascending."""

        self.agent_choices: list[tuple[tuple[int, ...], State]] = []
        """Every state where the agent is still open, with the tokens that lead there from the root."""
        self.leaves: list[Leaf] = []
        """Every way on which the agent gets settled, the way to none (owner "") among them."""
        self._walk(self.root, (), ())

    def _walk(self, state: State, path: tuple[int, ...], taken: tuple[tuple[int, int], ...]) -> None:
        if state.owner is not None:
            self.leaves.append(Leaf(state.owner, path, state, taken))
            return
        choice = len(self.agent_choices)
        if state.is_choice:
            self.agent_choices.append((path, state))
        for token, after in state.edges.items():
            self._walk(after, (*path, token), (*taken, (choice, token)) if state.is_choice else taken)


class _Arguments:
    """The arguments of one agent, in the order in which the chat template writes them."""

    def __init__(self, agent: Agent, grammar: Grammar) -> None:
        for name, parameter in agent.parameters.items():
            for value in parameter.enum:
                if grammar._encoder.tokenizer.decode(grammar._encoder.text(value)) != value:
                    raise InputError(f"{agent.name}: {name}: the tokenizer cannot write the value {value!r}")
        self.parameters = sorted(agent.parameters.items(), key=lambda item: item[0].lower())
        self.encoder, self.escape, self.end = grammar._encoder, grammar._escape, grammar._end
        self.values: dict[int, State] = {}
        self.lists: dict[tuple[int, int], State] = {}

    def after(self, index: int, text: str, written: bool) -> list[tuple[str, State]]:
        """Every text that can stand between here and the next value or the end, and the state behind it.

        `text` is what stands already since the last control token or value, `index` the first parameter that may come.
        """
        options: list[tuple[str, State]] = []
        for position in range(index, len(self.parameters)):
            name, parameter = self.parameters[position]
            key = f"{text}{',' if written else ''}{name}:"
            if parameter.type == "array":
                options.append((key + "[", self.items(position, 0)))
                options.extend(self.after(position + 1, key + "[]", written=True))
            else:
                options.append((key, self.value(position)))
            if parameter.required:
                return options
        return [*options, (text + "}", self.end)]

    def following(self, index: int) -> State:
        """The choice of what comes behind a value."""
        return join(self.options(self.after(index, "", True)))

    def options(self, ways: list[tuple[str, State]]) -> list[Option]:
        return [Option(tuple(self.encoder.text(text)), state) for text, state in ways]

    def value(self, index: int) -> State:
        if index not in self.values:
            self.values[index] = self._value(index)
        return self.values[index]

    def _value(self, index: int) -> State:
        name, parameter = self.parameters[index]
        if parameter.type == "string":
            then = self.following(index + 1)
            if parameter.enum:
                options = [Option((*self.encoder.text(value), self.escape), then) for value in parameter.enum]
                return State(edges={self.escape: join(options, name)})
            text = State(edges={self.escape: then})
            for _ in range(parameter.max_tokens):
                text = State(name, {self.escape: then}, text)
            return State(edges={self.escape: text})
        if parameter.type == "boolean":
            then = self.following(index + 1)
            return join([Option(tuple(self.encoder.text(value)), then) for value in ("false", "true")], name)
        digits = {character: self.encoder.text(character)[-1] for character in "0123456789-."}
        return NumberState(name, Number(name, parameter), "", self.following(index + 1), digits)

    def items(self, index: int, start: int) -> State:
        """The values of an array from the one numbered `start`: in the order of the enum, each at most once."""
        if (index, start) not in self.lists:
            self.lists[index, start] = self._items(index, start)
        return self.lists[index, start]

    def _items(self, index: int, start: int) -> State:
        name, parameter = self.parameters[index]
        options = []
        for position in range(start, len(parameter.enum)):
            ways = self.after(index + 1, "]", True)
            if position + 1 < len(parameter.enum):
                ways.append((",", self.items(index, position + 1)))
            then = join(self.options(ways), name)
            options.append(Option((*self.encoder.text(parameter.enum[position]), self.escape), then))
        return State(edges={self.escape: join(options, name)})


def _text_tokens(encoder: Encoder) -> list[int]:
    """Tokens of a free text: no added token, no single byte (half a character), nothing that could spell a marker."""
    added = set(encoder.tokenizer.added_tokens_decoder)
    return sorted(
        index
        for token, index in encoder.plain.get_vocab(with_added_tokens=False).items()
        if index not in added and "<" not in token and ">" not in token
    )
