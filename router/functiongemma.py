"""FunctionGemma's syntax: control tokens, calls to text and back, the chat template. No agents, no files, no torch.

A call is written

    <start_function_call>call:NAME{KEY:VALUE,...}<end_function_call>

with its keys sorted and bare, and every string between two `<escape>` tokens. Between those everything is text.
"""

import math
import re
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD = "<pad>"
EOS = "<eos>"
BOS = "<bos>"
START_OF_TURN = "<start_of_turn>"
END_OF_TURN = "<end_of_turn>"
START_DECLARATION = "<start_function_declaration>"
END_DECLARATION = "<end_function_declaration>"
START_CALL = "<start_function_call>"
END_CALL = "<end_function_call>"
START_RESPONSE = "<start_function_response>"
END_RESPONSE = "<end_function_response>"
ESCAPE = "<escape>"

CONTROL_TOKENS = (
    PAD,
    EOS,
    BOS,
    START_OF_TURN,
    END_OF_TURN,
    START_DECLARATION,
    END_DECLARATION,
    START_CALL,
    END_CALL,
    START_RESPONSE,
    END_RESPONSE,
    ESCAPE,
)

STOP_TOKENS = (EOS, START_RESPONSE, END_OF_TURN)
"""End an answer: START_RESPONSE follows the last call, END_OF_TURN follows a text. END_CALL does not: a second call may
follow it directly."""

DEFAULT_SYSTEM = "You are a model that can do function calling with the following functions"
"""The developer message that switches function calling on. The chat template never adds it by itself."""

MAX_DEPTH = 64
"""Objects and lists may be nested this deep, the arguments themselves included."""

Value: TypeAlias = "str | int | float | bool | list[Value] | dict[str, Value] | None"
"""Any JSON value."""

NAME_CHARACTERS = frozenset(string.ascii_letters + string.digits + "_-.")
# A key or a bare word ends at any of these; "<" because a control token may follow directly.
DELIMITERS = frozenset(",:{}[]<")
# Null is printed by the template as Python's None; other writers of the format use JSON's null.
WORDS: dict[str, Value] = {"true": True, "false": False, "null": None, "None": None}
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Call:
    """A function call."""

    name: str
    arguments: dict[str, Value]


@dataclass(frozen=True)
class Answer:
    """What a model's answer says."""

    calls: tuple[Call, ...]
    """The calls in their order; none if the answer is broken anywhere, even behind a complete call."""
    text: str
    """Everything outside the calls, without stop tokens and surrounding white space; empty if the answer is broken."""
    error: str | None
    """Why the answer is broken, with the offset in characters; None if it is well-formed."""


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def parse(answer: str) -> Answer:
    """Read a model's answer, decoded with its control tokens.

    Takes any string and never raises. White space is not part of the syntax, and nothing is repaired: a call that
    lacks its end is an error, as is an END_CALL that ends nothing.
    """
    reader = _Reader(answer)
    calls: list[Call] = []
    try:
        texts = [reader.text()]
        while reader.take(START_CALL):
            calls.append(reader.call())
            texts.append(reader.text())
    except _BrokenError as broken:
        return Answer((), "", str(broken))
    text = "".join(texts)
    for token in (*STOP_TOKENS, PAD):
        text = text.replace(token, "")
    return Answer(tuple(calls), text.strip(), None)


class _BrokenError(Exception):
    """What is wrong with an answer, and where."""


class _Reader:
    """A recursive-descent parser: one method for each part of the syntax, each starting at `position`."""

    def __init__(self, answer: str) -> None:
        self.answer = answer
        self.position = 0

    def fail(self, reason: str, position: int | None = None) -> NoReturn:
        raise _BrokenError(f"{reason} at character {self.position if position is None else position}")

    def at(self, token: str) -> bool:
        return self.answer.startswith(token, self.position)

    def take(self, token: str) -> bool:
        """Step over `token` if it comes next."""
        found = self.at(token)
        if found:
            self.position += len(token)
        return found

    def expect(self, token: str, described: str = "") -> None:
        if not self.take(token):
            self.fail(f"expected {described or token}, found {self.ahead()}")

    def ahead(self) -> str:
        """What comes next, for messages: a control token, or a few characters."""
        if self.position == len(self.answer):
            return "the end"
        token = next(filter(self.at, CONTROL_TOKENS), None)
        return token or repr(self.answer[self.position : self.position + 12])

    def text(self) -> str:
        """Everything before the next call, or the end."""
        start = self.position
        end = self.answer.find(START_CALL, start)
        self.position = len(self.answer) if end < 0 else end
        text = self.answer[start : self.position]
        if END_CALL in text:
            self.fail(f"{END_CALL} without {START_CALL}", start + text.index(END_CALL))
        return text

    def call(self) -> Call:
        """`call:NAME{...}<end_function_call>`"""
        self.expect("call:")
        start = self.position
        while self.answer[self.position : self.position + 1] in NAME_CHARACTERS:
            self.position += 1
        name = self.answer[start : self.position]
        if not name:
            self.fail(f"expected a name, found {self.ahead()}")
        arguments = self.object(depth=1)
        self.expect(END_CALL)
        return Call(name, arguments)

    def open(self, bracket: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            self.fail(f"nested more than {MAX_DEPTH} deep")
        self.expect(bracket)

    def object(self, depth: int) -> dict[str, Value]:
        """`{KEY:VALUE,...}`"""
        self.open("{", depth)
        members: dict[str, Value] = {}
        if self.take("}"):
            return members
        while True:
            start = self.position
            key = self.bare()
            if not key:
                self.fail(f"expected a key, found {self.ahead()}")
            if key in members:
                self.fail(f"key {_short(key)} twice", start)
            self.expect(":")
            members[key] = self.value(depth)
            if self.take("}"):
                return members
            self.expect(",", ", or }")

    def array(self, depth: int) -> list[Value]:
        """`[VALUE,...]`"""
        self.open("[", depth)
        values: list[Value] = []
        if self.take("]"):
            return values
        while True:
            values.append(self.value(depth))
            if self.take("]"):
                return values
            self.expect(",", ", or ]")

    def value(self, depth: int) -> Value:
        """Any value; `depth` is that of the object or list around it."""
        if self.at(ESCAPE):
            return self.string()
        if self.at("{"):
            return self.object(depth + 1)
        if self.at("["):
            return self.array(depth + 1)
        return self.scalar()

    def string(self) -> str:
        """`<escape>TEXT<escape>`"""
        start = self.position + len(ESCAPE)
        end = self.answer.find(ESCAPE, start)
        if end < 0:
            self.fail("string without an end")
        self.position = end + len(ESCAPE)
        return self.answer[start:end]

    def scalar(self) -> Value:
        """A number, true, false or null. Strings without `<escape>` are refused: a broken number is no text."""
        start = self.position
        word = self.bare()
        if not word:
            self.fail(f"expected a value, found {self.ahead()}")
        if word in WORDS:
            return WORDS[word]
        match = NUMBER.fullmatch(word)
        if match is None:
            self.fail(f"unknown word {_short(word)}", start)
        number = _number(word, is_float=bool(match[2] or match[3]))
        if number is None:
            self.fail("number too large", start)
        return number

    def bare(self) -> str:
        """Characters up to the next delimiter, possibly none."""
        start = self.position
        while self.position < len(self.answer) and self.answer[self.position] not in DELIMITERS:
            self.position += 1
        return self.answer[start : self.position]


def _short(word: str) -> str:
    return repr(word if len(word) <= 24 else f"{word[:24]}...")


def _number(word: str, is_float: bool) -> int | float | None:
    """The value of a number, or None if it is too large: beyond float's range, or more digits than int() reads."""
    if is_float:
        return value if math.isfinite(value := float(word)) else None
    try:
        return int(word)
    except ValueError:
        return None


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def serialise(call: Call) -> str:
    """The call's text, exactly as the chat template renders it, up to and with END_CALL.

    Raises:
        ValueError: as `pieces` does.
    """
    return "".join(pieces(call))


def pieces(call: Call) -> list[str]:
    """The call's text in pieces that are tokenised one by one: control tokens, values, the fixed text between them.

    Whatever this writes, `parse` reads back as the same call.

    Raises:
        ValueError: naming the key, if a string contains a control token (the template writes strings unescaped), or if
            a key or value has no form in this syntax.
    """
    if not call.name or not NAME_CHARACTERS.issuperset(call.name):
        raise ValueError(f"the name {call.name!r} must consist of letters, digits, _, - and .")
    writer = _Writer()
    writer.whole(START_CALL)
    writer.fixed(f"call:{call.name}")
    writer.object(call.arguments, "", depth=1)
    writer.whole(END_CALL)
    return writer.pieces


class _Writer:
    """Collects pieces; fixed text grows until a whole piece follows it."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self._fixed = ""

    def fixed(self, text: str) -> None:
        self._fixed += text

    def whole(self, piece: str) -> None:
        self.pieces += [part for part in (self._fixed, piece) if part]
        self._fixed = ""

    def object(self, members: dict[str, Value], path: str, depth: int) -> None:
        _check_depth(path, depth)
        # As Jinja's dictsort: by lower case, ties in given order.
        for index, (key, value) in enumerate(sorted(members.items(), key=lambda member: member[0].lower())):
            if not key or not DELIMITERS.isdisjoint(key):
                raise ValueError(f"the key {path + key!r} must not be empty nor contain any of , : {{ }} [ ] <")
            self.fixed(f"{',' if index else '{'}{key}:")
            self.value(value, path + key, depth)
        self.fixed("}" if members else "{}")

    def array(self, values: list[Value], path: str, depth: int) -> None:
        _check_depth(path, depth)
        for index, value in enumerate(values):
            self.fixed("," if index else "[")
            self.value(value, path, depth)
        self.fixed("]" if values else "[]")

    def value(self, value: Value, path: str, depth: int) -> None:
        """Any value; `path` leads to it, for messages, and `depth` is that of the object or list around it."""
        match value:
            case str():
                self.string(value, path)
            case bool():  # before int, which it is too
                self.whole("true" if value else "false")
            case None:
                self.whole("None")
            case int():
                self.whole(str(value))
            case float() if math.isfinite(value):
                self.whole(str(value))
            case dict():
                self.object(value, f"{path}.", depth + 1)
            case list():
                self.array(value, path, depth + 1)
            case _:
                raise ValueError(f"argument {path!r}: {value!r} is not a JSON value")

    def string(self, text: str, path: str) -> None:
        found = next((token for token in CONTROL_TOKENS if token in text), None)
        if found:
            raise ValueError(f"argument {path!r} contains the control token {found}")
        self.whole(ESCAPE)
        self.whole(text)
        self.whole(ESCAPE)


def _check_depth(path: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"argument {path.split('.')[0]!r} is nested more than {MAX_DEPTH} deep")


# ---------------------------------------------------------------------------------------------------------------------
# The chat template


def render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    generation_prompt: bool,
) -> str:
    """A conversation as text, by the tokenizer's own chat template.

    The text starts with BOS, so it must be tokenised with `add_special_tokens=False`. Messages are not escaped: a
    control token that a customer types becomes a real one.
    """
    text = tokenizer.apply_chat_template(
        messages, tools=[*tools] if tools else None, add_generation_prompt=generation_prompt, tokenize=False
    )
    assert isinstance(text, str), f"the chat template gave a {type(text).__name__} for one conversation"
    return text
