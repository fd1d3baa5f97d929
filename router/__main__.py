"""The command line.

python -m router "I was charged twice"                    one call, as JSON
python -m router predict < queries.jsonl > calls.jsonl    one line in, one line out, in order
python -m router compare REV_A REV_B                      what changed between two Git revisions
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any, BinaryIO

from router.errors import InputError, run

CHUNK = 1024
"""Lines read at a time by `predict`."""


def as_line(route: Any) -> dict[str, Any]:
    """A route as it is printed: probabilities rounded to six digits."""

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rounded(item) for key, item in value.items()}
        return round(value, 6) if isinstance(value, float) else value

    line = asdict(route)
    return line | {key: rounded(line[key]) for key in ("confidence", "in_scope", "argument_confidence", "agents")}


def query_of(line: bytes, number: int) -> str:
    """The message of one input line: an object with `query`, or a bare JSON string.

    Raises:
        InputError: naming the line and what is wrong with it.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # the latter from brackets nested a thousand deep
        raise InputError(f"line {number}: not valid JSON ({error})") from None
    query = value.get("query") if isinstance(value, dict) else value
    if not isinstance(query, str) or not query.strip():
        raise InputError(f'line {number}: needs a text that is not empty, as {{"query": "..."}}')
    return query


def predict(router: Any, lines: BinaryIO) -> Iterator[dict[str, Any]]:
    """One answer a line, in order; a bad line gets an `error` in its place."""
    numbered = enumerate(lines, start=1)
    while chunk := list(islice(numbered, CHUNK)):
        answers: list[dict[str, Any] | None] = []
        queries = []
        for number, line in chunk:
            try:
                queries.append(query_of(line, number))
                answers.append(None)
            except InputError as error:
                answers.append({"error": str(error)})
        routes = router.route_many(queries)
        for answer in answers:
            yield as_line(next(routes)) if answer is None else answer


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m router", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="models/router", help="folder or Hub id (default: %(default)s)")
    parser.add_argument("words", nargs="+", metavar="MESSAGE | predict | compare REV_A REV_B")
    arguments = parser.parse_args()
    words = arguments.words
    if words[0] == "compare":
        if len(words) != 3:
            parser.error("compare needs two Git revisions")
        from router.revisions import compare

        print(compare(*words[1:]))
        return
    from transformers.utils import logging  # only now: --help and compare need no torch

    from router.router import Router

    logging.disable_progress_bar()  # of loading the weights
    router = Router.from_pretrained(arguments.model)
    if words != ["predict"]:
        print(json.dumps(as_line(router.route(" ".join(words))), ensure_ascii=False))
        return
    from tqdm import tqdm

    errors = 0
    for answer in tqdm(predict(router, sys.stdin.buffer), unit=" lines"):
        errors += "error" in answer
        print(json.dumps(answer, ensure_ascii=False))
    if errors:
        raise InputError(f"{errors} lines could not be read; see the error fields in the output")


if __name__ == "__main__":
    run(main)
