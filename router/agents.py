"""Agents: what can be called, with which arguments. Loads, validates, exports as tool schemas. No models, no torch."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML

from router.errors import InputError
from router.functiongemma import CONTROL_TOKENS
from router.params import first_problem, load_yaml

Value = str | bool | int | float | list[str]

# FunctionGemma's chat template drops parameters of these names without a word.
RESERVED_NAMES = frozenset({"description", "type", "properties", "required", "nullable"})
INTEGER_DIGITS, FRACTION_DIGITS = 15, 4
"""Digits of a number before and after the point. With more decimals Python would print small ones with an exponent."""
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _check_identifier(name: str) -> str:
    if not IDENTIFIER.fullmatch(name):
        raise ValueError(f"{name!r} must consist of letters, digits and _, and not begin with a digit")
    return name


def _check_parameter_name(name: str) -> str:
    if name in RESERVED_NAMES:
        raise ValueError(f"a parameter cannot be called {name}: the chat template drops it; choose another name")
    return _check_identifier(name)


def _check_text(text: str) -> str:
    found = next((token for token in CONTROL_TOKENS if token in text), None)
    if found:
        raise ValueError(f"must not contain the control token {found}")
    return text


Identifier = Annotated[str, AfterValidator(_check_identifier)]
ParameterName = Annotated[str, AfterValidator(_check_parameter_name)]
Text = Annotated[str, AfterValidator(_check_text)]


class Parameter(BaseModel):
    """One argument of an agent: a JSON-Schema subset.

    `string` with `enum` is closed; without, free text of at most `max_tokens` tokens. `integer` and `number` may be
    bounded. `array` holds values of `enum`, each at most once, in the order of `enum`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["string", "boolean", "integer", "number", "array"] = "string"
    description: Text = ""
    enum: tuple[Text, ...] = ()
    required: bool = True
    minimum: float | None = None
    maximum: float | None = None
    max_tokens: Annotated[int, Field(ge=1)] = 32
    """Longest free text, in tokens."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.enum and self.type not in ("string", "array"):
            raise ValueError(f"enum goes with the types string and array, not {self.type}")
        if self.type == "array" and not self.enum:
            raise ValueError("an array needs an enum of the values that it may hold")
        if len(set(self.enum)) != len(self.enum):
            raise ValueError("enum names a value twice")
        if "" in self.enum:
            raise ValueError("enum holds an empty value")
        bounds = (self.minimum, self.maximum)
        if any(bound is not None for bound in bounds) and self.type not in ("integer", "number"):
            raise ValueError(f"minimum and maximum go with the types integer and number, not {self.type}")
        if self.type == "integer" and any(bound is not None and bound != int(bound) for bound in bounds):
            raise ValueError("minimum and maximum of an integer must be whole numbers")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        return self

    def problem_with(self, value: object) -> str | None:
        """Why `value` is not a value of this parameter, or None if it is."""
        match self.type:
            case "string":
                if not isinstance(value, str):
                    return f"{value!r} is not text"
                if self.enum and value not in self.enum:
                    return f"{value!r} is not one of {', '.join(self.enum)}"
                if any(token in value for token in CONTROL_TOKENS):
                    return f"{value!r} contains a control token"
            case "boolean":
                if not isinstance(value, bool):
                    return f"{value!r} is not true or false"
            case "integer" | "number":
                if isinstance(value, bool) or not isinstance(value, int if self.type == "integer" else (int, float)):
                    return f"{value!r} is not {'an integer' if self.type == 'integer' else 'a number'}"
                if isinstance(value, float) and not math.isfinite(value):
                    return f"{value!r} is not a number that can be written"
                if abs(value) >= 10**INTEGER_DIGITS or round(value, FRACTION_DIGITS) != value:
                    return f"{value!r} has more than {INTEGER_DIGITS} digits or {FRACTION_DIGITS} decimals"
                if self.minimum is not None and value < self.minimum:
                    return f"{value!r} is below {self.minimum:g}"
                if self.maximum is not None and value > self.maximum:
                    return f"{value!r} is above {self.maximum:g}"
            case "array":
                if not isinstance(value, list):
                    return f"{value!r} is not a list"
                if value != [item for item in self.enum if item in value]:
                    return f"{value!r} must hold values of {', '.join(self.enum)}, each once, in this order"
        return None


class Agent(BaseModel):
    """An agent: its name, what it handles, and its parameters by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Identifier
    description: Text
    parameters: dict[ParameterName, Parameter] = Field(default_factory=dict)

    def problem_with(self, arguments: dict[str, Any]) -> str | None:
        """Why `arguments` are not valid for this agent, or None if they are."""
        for name in arguments:
            if name not in self.parameters:
                return f"{self.name} has no argument {name!r} (it has {', '.join(self.parameters) or 'none'})"
        for name, parameter in self.parameters.items():
            if name not in arguments:
                if parameter.required:
                    return f"argument {name!r} of {self.name} is missing"
            elif problem := parameter.problem_with(arguments[name]):
                return f"argument {name!r} of {self.name}: {problem}"
        return None

    def tool_schema(self) -> dict[str, Any]:
        """The agent as `apply_chat_template(tools=...)` takes it."""
        properties = {}
        for name, parameter in self.parameters.items():
            schema: dict[str, Any] = {"type": parameter.type, "description": parameter.description}
            if parameter.type == "array":
                schema["items"] = {"type": "string", "enum": list(parameter.enum)}
            elif parameter.enum:
                schema["enum"] = list(parameter.enum)
            properties[name] = schema
        required = [name for name, parameter in self.parameters.items() if parameter.required]
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": {"type": "object", "properties": properties, "required": required},
            },
        }


def load_agents(path: str | Path) -> list[Agent]:
    """Read and check a declaration of agents.

    Raises:
        InputError: naming the file and the agent and key at fault.
    """
    values = load_yaml(path)
    if not isinstance(values, list) or not values:
        raise InputError(f"{path}: must be a list of at least one agent")
    agents: list[Agent] = []
    for number, value in enumerate(values, start=1):
        try:
            agent = Agent.model_validate(value)
        except ValidationError as error:
            name = value.get("name", "?") if isinstance(value, dict) else "?"
            raise InputError(f"{path}: agent {number} ({name}): {first_problem(error)}") from None
        if any(agent.name == other.name for other in agents):
            raise InputError(f"{path}: agent {number}: the name {agent.name!r} is taken; names must differ")
        agents.append(agent)
    return agents


def save_agents(agents: Sequence[Agent], path: str | Path) -> None:
    """Write agents so that `load_agents` reads the same back."""
    yaml = YAML()
    yaml.width = 4096
    with open(path, "w", encoding="utf-8") as file:
        yaml.dump([agent.model_dump(mode="json", exclude_defaults=True) for agent in agents], file)
