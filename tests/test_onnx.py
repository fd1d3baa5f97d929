"""The router in ONNX Runtime: the same answers as in PyTorch, and clear errors."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import EVERY_KIND, QUERIES, REPOSITORY, WINDOW, tiny_router
from publication import run_stage
from test_router import assert_same
from transformers import PreTrainedTokenizerFast

from router.agents import Agent, Value
from router.errors import InputError
from router.examples import Example, conversation, write_jsonl
from router.functiongemma import DEFAULT_SYSTEM
from router.router import Router

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
MESSAGES = [*QUERIES, "x " * 100, "a"]


@pytest.fixture(scope="module")
def project(saved: Path, default_agents: list[Agent], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which the stage ran on a tiny random router."""
    for package in PACKAGES:
        pytest.importorskip(package, reason="needs the extra: pip install .[export]")
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(saved, folder / "models/router")
    (folder / "data").mkdir()
    labelled = [
        Example(query=f"{message} {agent.name}", agent=agent.name, arguments=first_values(agent), family="")
        for message in MESSAGES
        for agent in default_agents
    ]
    write_jsonl([conversation(row, default_agents, DEFAULT_SYSTEM) for row in labelled], folder / "data/test.jsonl")
    run_stage(folder, "export_onnx", "models/router", "models/onnx")
    return folder


def first_values(agent: Agent) -> dict[str, Value]:
    return {name: parameter.enum[0] for name, parameter in agent.parameters.items()}


@pytest.fixture(scope="module")
def exported(project: Path) -> Path:
    return project / "models/onnx"


@pytest.mark.parametrize("kind", ["default", "every kind"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_same_answers_as_in_torch(exported: Path, default_agents: list[Agent], kind: str, batch_size: int) -> None:
    agents = default_agents if kind == "default" else EVERY_KIND
    here = Router.from_pretrained(exported, agents, runtime="onnxruntime")
    there = Router.from_pretrained(exported, agents, "cpu")
    assert len(here._encoder.prefix) > WINDOW
    assert len({len(here._encode(message)[0]) for message in MESSAGES}) > 3
    for left, right in zip(here.route_many(MESSAGES, batch_size), there.route_many(MESSAGES, batch_size), strict=True):
        assert_same(left, right)


def test_free_generation_is_that_of_torch(exported: Path) -> None:
    here = Router.from_pretrained(exported, runtime="onnxruntime")
    there = Router.from_pretrained(exported, device="cpu")
    assert list(here.generate(MESSAGES, max_new_tokens=12)) == list(there.generate(MESSAGES, max_new_tokens=12))


def test_exporting_leaves_the_router_as_it_is(exported: Path, saved: Path, router: Router) -> None:
    fresh = Router.from_pretrained(saved, device="cpu")
    assert [router.route(message) for message in QUERIES] == [fresh.route(message) for message in QUERIES]


def test_threads_and_copies_get_the_same_answers(exported: Path) -> None:
    router = Router.from_pretrained(exported, runtime="onnxruntime")
    alone = [router.route(message) for message in MESSAGES]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(router.route, MESSAGES * 4)) == alone * 4
    again = pickle.loads(pickle.dumps(router))
    assert [again.route(message) for message in MESSAGES] == alone


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (
            lambda folder: (folder / "step.onnx").unlink(),
            {},
            "has no step.onnx; make a folder with it: `python stages/export_onnx.py",
        ),
        (lambda folder: (folder / "step.onnx").write_bytes(b"cut off"), {}, "step.onnx: no usable ONNX file"),
        (
            lambda folder: (folder / "step_int8.onnx").unlink(missing_ok=True),
            {"runtime": "onnxruntime-int8"},
            "has no step_int8.onnx; make a folder",
        ),
        (
            lambda folder: None,
            {"runtime": "tensorrt"},
            "there is no 'tensorrt'; choose torch, onnxruntime or onnxruntime-int8",
        ),
        (lambda folder: None, {"device": "cuda"}, "on the CPU in float32"),
        (lambda folder: None, {"dtype": torch.bfloat16}, "on the CPU in float32"),
    ],
)
def test_what_cannot_run_is_one_clear_line(
    exported: Path, tmp_path: Path, damage: Callable[[Path], object], options: dict[str, object], message: str
) -> None:
    folder = tmp_path / "router"
    shutil.copytree(exported, folder)
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        Router.from_pretrained(folder, **{"runtime": "onnxruntime", **options})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_without_the_package_it_says_how_to_install_it(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    (tmp_path / "step.onnx").touch()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "router.onnx_runtime", raising=False)
    with pytest.raises(InputError, match=r"onnxruntime is not installed; run `pip install .\[export\]`"):
        Router.from_pretrained(tmp_path, runtime="onnxruntime")


def test_nothing_of_it_is_imported_unless_asked_for() -> None:
    code = f"import sys, router.router; assert not {{*{PACKAGES}}} & {{*sys.modules}}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_stage_writes_a_checkpoint_and_what_it_measured(project: Path) -> None:
    metrics = json.loads((project / "metrics/onnx.json").read_text())
    float32, int8 = metrics["onnxruntime"], metrics["onnxruntime-int8"]
    assert float32["agreement"] == 1
    assert float32["kept"]
    assert int8["kept"] == (int8["agreement"] >= 0.99)
    expected = {path.name for path in (project / "models/router").iterdir()} | {"step.onnx"}
    assert {path.name for path in (project / "models/onnx").iterdir()} - {"step_int8.onnx"} == expected
    assert (project / "models/onnx/step_int8.onnx").exists() == int8["kept"]


def test_stage_refuses_what_answers_differently(
    project: Path,
    tokenizer: PreTrainedTokenizerFast,
    default_agents: list[Agent],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(project / "data", tmp_path / "data")
    tiny_router(tokenizer, default_agents, seed=1).save_pretrained(tmp_path / "models/router")
    other = project / "models/onnx/step.onnx"
    monkeypatch.setattr("router.onnx_runtime.export", lambda model, file: shutil.copyfile(other, file))
    with pytest.raises(InputError, match="are not PyTorch's"):
        run_stage(tmp_path, "export_onnx", "models/router", "models/onnx")
    assert not (tmp_path / "models/onnx/step.onnx").exists()
