"""The command line: what it prints, where, and how it ends."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from router import errors as errors_module
from router.__main__ import main
from router.router import Router


def run(*arguments: str | Path, text: bytes = b"") -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, the printed JSON lines, and what was said on the error stream, of `python -m router ARGUMENTS`."""
    output, errors = io.StringIO(), io.StringIO()
    code: str | int | None = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
        patch.setattr("sys.argv", ["router", *map(str, arguments)])
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
        try:
            errors_module.run(main)
        except SystemExit as end:
            code = end.code
    if isinstance(code, str):  # Python prints it and exits with 1
        return 1, [json.loads(line) for line in output.getvalue().splitlines()], f"{errors.getvalue()}\n{code}\n"
    return code or 0, [json.loads(line) for line in output.getvalue().splitlines()], errors.getvalue()


def test_one_message(saved: Path) -> None:
    code, (answer,), errors = run("--model", saved, "I was charged twice")
    route = Router.from_pretrained(saved, device="cpu").route("I was charged twice")
    assert code == 0, errors
    assert (answer["agent"], answer["arguments"]) == (route.agent, route.arguments)
    assert answer["confidence"] == pytest.approx(route.confidence, abs=1e-4)
    assert answer["agents"].keys() == route.agents.keys()


def test_predict_answers_every_good_line_in_its_place(saved: Path) -> None:
    good = [{"query": f"invoice {number}"} for number in range(5)]
    bad = [
        b"not json", b"", b'{"query": 7}', b'{"query": "  "}', b'{"question": "x"}', b"[]", b"\xff\xfe\xfd",
        b"[" * 100_000, b'{"query": "cut',
    ]  # fmt: skip
    lines = [json.dumps(good[0]).encode()]
    for number, line in enumerate(bad):
        lines += [line, json.dumps(good[number % 5]).encode()]
    lines.append(b'"a bare text with \\ud800"')
    done = subprocess.run(
        [sys.executable, "-m", "router", "--model", saved, "predict"],
        input=b"\n".join(lines) + b"\n",
        capture_output=True,
        cwd=REPOSITORY,
    )
    answers, errors = [json.loads(line) for line in done.stdout.splitlines()], done.stderr.decode()
    assert done.returncode == 1
    assert "Traceback" not in errors
    assert errors.rstrip().splitlines()[-1].startswith("error: 9 lines could not be read")
    assert len(answers) == len(lines)
    router = Router.from_pretrained(saved, device="cpu")
    for number, (line, answer) in enumerate(zip(lines, answers, strict=True), start=1):
        if line in bad:
            assert list(answer) == ["error"]
            assert answer["error"].startswith(f"line {number}: ")
        else:
            query = json.loads(line)
            route = router.route(query["query"] if isinstance(query, dict) else query)
            assert (answer["agent"], answer["arguments"]) == (route.agent, route.arguments)


def test_predict_of_good_lines_or_none_succeeds(saved: Path) -> None:
    code, answers, errors = run("--model", saved, "predict", text=b'{"query": "hello"}\r\n{"query": "bye"}')
    assert (code, len(answers)) == (0, 2)
    assert "2 lines" in errors  # progress, on the error stream
    assert run("--model", saved, "predict")[:2] == (0, [])


def test_a_missing_model_is_one_clear_line(tmp_path: Path) -> None:
    code, answers, errors = run("--model", tmp_path / "nowhere", "hello")
    assert (code, answers) == (1, [])
    assert errors.strip().startswith("error: ")
    assert len(errors.strip().splitlines()) == 1


def test_an_empty_message_is_one_clear_line(saved: Path) -> None:
    code, answers, errors = run("--model", saved, " ")
    assert (code, answers) == (1, [])
    assert errors.splitlines()[-1] == "error: the query is empty"


def test_help_waits_for_no_heavy_library() -> None:
    script = """
import sys
from router.__main__ import main
sys.argv = ["router", "--help"]
try:
    main()
except SystemExit as end:
    assert end.code == 0
assert not {"torch", "transformers", "numpy"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "python -m router predict" in done.stdout
