"""The table of predictions: one row a query, as a person reads it and as every later stage does."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from router.errors import InputError
from router.examples import Example

if TYPE_CHECKING:
    from router.router import Route


def as_json(arguments: dict[str, Any]) -> str:
    """Arguments as text with sorted keys, so that equal arguments are equal texts."""
    return json.dumps(arguments, sort_keys=True, ensure_ascii=False)


def table(examples: Sequence[Example], routes: "Sequence[Route]") -> pd.DataFrame:
    """One row a query: what was asked, what was right, what was answered and how surely.

    `agent` is empty for a message that no agent fits.
    """
    return pd.DataFrame(
        {
            "query": [example.query for example in examples],
            "agent": [example.agent for example in examples],
            "predicted": [route.agent for route in routes],
            "arguments": [as_json(dict(example.arguments)) for example in examples],
            "predicted_arguments": [as_json(route.arguments) for route in routes],
            "confidence": [round(route.confidence, 4) for route in routes],
            "score": [round(route.score, 4) for route in routes],
            "abstained": [route.abstained for route in routes],
            "tags": [" ".join(example.tags) for example in examples],
        }
    )


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a table of predictions; adds the columns `right` (agent) and `whole` (agent and all arguments).

    Raises:
        InputError: there is no such table.
    """
    try:
        frame = pd.read_csv(path, keep_default_na=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); run `dvc repro` first") from None
    frame["right"] = frame["agent"] == frame["predicted"]
    frame["whole"] = frame["right"] & (frame["arguments"] == frame["predicted_arguments"])
    return frame
