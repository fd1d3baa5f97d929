"""The real DVC pipeline, end to end, in a repository of its own with a tiny base and little data.

One run is shared; every test that changes something works on a copy of it. No test may reach the network.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from dvc.repo import Repo
from networkx import ancestors
from ruamel.yaml import YAML

from router.agents import load_agents
from router.embedded.pretraining import new_model, save
from router.embedded.tokenizer import train_tokenizer
from router.params import load_params

ROOT = Path(__file__).parent.parent
ALL = {"generate", "split", "base", "summary", "evaluate@before", "train", "evaluate@after", "baseline", "compare"}
TINY = {
    "data.limit": 60,
    "data.train": 12,
    "data.validation": 6,
    "data.negatives": 4,
    "epochs": 2,
    "embedded.vocabulary": 1000,
    "embedded.hidden": 32,
    "embedded.layers": 2,
}


def environment(folder: Path) -> dict[str, str]:
    """Stages find this interpreter as `python` and the copy's own modules; no user settings, no way out."""
    home = folder.parent
    closed = "http://127.0.0.1:9"
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "DVC_", "HF_"))},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
        "HOME": str(home),
        "GIT_CONFIG_NOSYSTEM": "1",
        "DVC_SITE_CACHE_DIR": str(home / "dvc-cache"),
        "DVC_NO_ANALYTICS": "1",
        "HF_HOME": str(home / "huggingface"),
        "http_proxy": closed,
        "https_proxy": closed,
        "all_proxy": closed,
        "COLUMNS": "200",
    }


def run(folder: Path, *command: str, expect: int | None = 0) -> str:
    """Run a command in the repository; its standard output and standard error, checked for its exit code."""
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True)
    assert expect is None or done.returncode == expect, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def dvc(folder: Path, *arguments: str, expect: int | None = 0) -> str:
    return run(folder, sys.executable, "-m", "dvc", *arguments, expect=expect)


def git(folder: Path, *arguments: str) -> str:
    return run(folder, "git", "-c", "user.name=Test", "-c", "user.email=test@example.com", *arguments)


def set_params(folder: Path, values: dict[str, Any]) -> None:
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    for key, value in values.items():
        *sections, name = key.split(".")
        place = params
        for section in sections:
            place = place[section]
        place[name] = value
    yaml.dump(params, folder / "params.yaml")


def stages_run(output: str) -> set[str]:
    return set(re.findall(r"Running stage '([^']+)'", output))


def make_base(folder: Path) -> None:
    """An untrained base of a few thousand parameters in the place of the embedded one."""
    params = load_params(folder / "params.yaml").embedded
    texts = [json.dumps([agent.tool_schema() for agent in load_agents(folder / "agents.yaml")])] * 10
    tokenizer = train_tokenizer(texts, params.vocabulary)
    shutil.rmtree(folder / "models", ignore_errors=True)
    vectors = 0.02 * torch.randn(len(tokenizer), params.hidden)
    save(new_model(tokenizer, params, vectors), tokenizer, folder / "models" / "embedded")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with this working tree's files, in which the pipeline ran once and was committed."""
    folder = tmp_path_factory.mktemp("pipeline") / "repository"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    for name in listed.stdout.split("\0")[:-1]:
        made = name.startswith(("models/", "metrics/", "plots/", "tests/")) or name == "dvc.lock"
        if (ROOT / name).is_file() and not made:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    set_params(folder, TINY)
    make_base(folder)
    git(folder, "init", "--quiet")
    dvc(folder, "commit", "--force", "embedded")
    output = dvc(folder, "repro")
    assert stages_run(output) == ALL
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Run")
    return folder


@pytest.fixture
def repository(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "repository", symlinks=True))


def would_run(folder: Path) -> set[str]:
    """The stages that DVC says have changed, and in DVC's graph all that depend on them. Only those of ./dvc.yaml."""
    changed = as_json(dvc(folder, "status", "--json")).keys()
    with Repo(str(folder)) as repository:
        graph = repository.index.graph  # edges go from a stage to those that it depends on
        first = [stage for stage in graph if stage.name in changed]
        affected = {*first, *(above for stage in first for above in ancestors(graph, stage))}
        return {stage.name for stage in affected if not stage.frozen and stage.path_in_repo == "dvc.yaml"}


def as_json(output: str) -> Any:
    """What DVC printed as JSON; its warnings stand behind."""
    return json.JSONDecoder().raw_decode(output)[0]


def contents(folder: Path) -> dict[str, bytes]:
    """Every output of the pipeline, by its path."""
    with Repo(str(folder)) as repository:
        outs = [Path(out.fs_path) for stage in repository.index.stages for out in stage.outs]
    files = [file for out in outs for file in (sorted(out.rglob("*")) if out.is_dir() else [out]) if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


# ---------------------------------------------------------------------------------------------------------------------
# What dvc.yaml declares


def imported(path: Path) -> set[Path]:
    """The files of router/ that importing `path` may load, at any depth; TYPE_CHECKING blocks are left out."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        for node in runtime_nodes(ast.parse(waiting.pop().read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "router":
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                files = {ROOT / f"{module.replace('.', '/')}.py" for module in modules}
                new = {file for file in files if file.is_file()} - found
                found |= new
                waiting += new
    return found


def runtime_nodes(tree: ast.AST) -> list[ast.AST]:
    nodes = [tree]
    for node in nodes:
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        nodes += node.orelse if typing_only and isinstance(node, ast.If) else list(ast.iter_child_nodes(node))
    return nodes


def test_each_stage_declares_its_script_and_exactly_the_modules_that_it_uses() -> None:
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    checked = set()
    for name, stage in stages.items():
        stage = stage.get("do", stage)
        if stage.get("frozen"):
            continue
        script = stage["cmd"].split()[1]
        declared = {dep for dep in stage["deps"] if re.match(r"(router|stages)/", dep)}
        used = {str(file.relative_to(ROOT)) for file in imported(ROOT / script)} | {script}
        assert declared == used, f"{name}: missing {sorted(used - declared)}, too many {sorted(declared - used)}"
        assert stage["desc"]
        checked.add(name)
    assert checked >= {name.partition("@")[0] for name in ALL}


def test_stages_that_need_no_model_do_not_load_torch() -> None:
    for name in ("generate", "split", "base"):
        code = f"import sys; sys.path.insert(0, 'stages'); import {name}; print('torch' in sys.modules)"
        assert run(ROOT, sys.executable, "-c", code).strip() == "False", name


# ---------------------------------------------------------------------------------------------------------------------
# One run


def test_a_run_leaves_every_declared_output(finished: Path) -> None:
    made = contents(finished)
    for name in ("data/queries.jsonl", "data/train.jsonl", "data/validation.jsonl", "data/test.jsonl"):
        assert made[name]
    for folder in ("models/base", "models/router"):
        files = {Path(name).name for name in made if name.startswith(f"{folder}/")}
        assert files >= {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    for name in ("before", "after"):
        metrics = json.loads(made[f"metrics/{name}.json"])
        assert metrics["total"] == 42
        assert {"accuracy", "accuracy_low", "accuracy_high", "correct", "call_accuracy", "macro_f1"} <= metrics.keys()
        assert {"accuracy", "valid_rate"} <= metrics["free"].keys()
    assert {"accuracy_gain", "mcnemar_p", "baselines"} <= json.loads(made["metrics/comparison.json"]).keys()
    assert len(made["plots/loss.csv"].splitlines()) == 1 + TINY["epochs"]
    assert made["plots/overview.png"].startswith(b"\x89PNG")


def test_what_git_keeps_is_small_and_not_in_the_cache(finished: Path) -> None:
    tracked = set(git(finished, "ls-files").splitlines())
    assert {"dvc.lock", "metrics/after.json", "plots/loss.csv", "models/embedded/model.safetensors"} <= tracked
    assert not {name for name in tracked if name.startswith(("models/base/", "models/router/")) or "train.json" in name}


def test_a_second_run_does_nothing(repository: Path) -> None:
    assert stages_run(dvc(repository, "repro")) == set()
    assert git(repository, "status", "--porcelain") == ""


def test_a_forced_run_gives_the_same_bytes(repository: Path) -> None:
    before = contents(repository)
    assert stages_run(dvc(repository, "repro", "--force")) == ALL
    assert git(repository, "diff") == ""
    assert contents(repository) == before


# ---------------------------------------------------------------------------------------------------------------------
# Experiments


def test_another_learning_rate_trains_again_and_measures_only_what_that_changes(repository: Path) -> None:
    output = dvc(repository, "exp", "run", "-S", "lr=1.5e-5")
    assert stages_run(output) == {"train", "evaluate@after", "compare"}
    assert "1.5e-05" in (repository / "params.yaml").read_text()
    assert re.search(r"params\.yaml +lr +1e-05 +1\.5e-05", dvc(repository, "params", "diff"))
    shown = dvc(repository, "metrics", "show", "--json")
    assert {"metrics/before.json", "metrics/after.json"} <= as_json(shown)[""]["data"].keys()
    changes = as_json(dvc(repository, "metrics", "diff", "--json"))
    assert "metrics/after.json" in changes
    assert "metrics/before.json" not in changes
    assert "lr" in dvc(repository, "exp", "show", "--only-changed", "--csv").splitlines()[0]
    dvc(repository, "plots", "show")
    html = (repository / "dvc_plots" / "index.html").read_text(encoding="utf-8")
    for plot in YAML(typ="safe").load(ROOT / "dvc.yaml")["plots"]:
        for title, data in plot.items() if isinstance(plot, dict) else ():
            made_by_this_run = all((repository / file).exists() for file in data["y"])
            assert (title in html) == made_by_this_run, title


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"data.augment": 2}, ALL - {"base"}),
        ({"base": "models/embedded"}, ALL - {"generate", "split", "baseline"}),
        ({"data.train": 11}, ALL - {"generate", "base"}),
        ({"lr": 1.5e-5}, {"train", "evaluate@after", "compare"}),
        ({"hub.private": False}, set()),
        ({"embedded.steps": 1}, set()),
    ],
)
def test_a_changed_parameter_reruns_what_depends_on_it(
    repository: Path, changes: dict[str, Any], stages: set[str]
) -> None:
    set_params(repository, changes)
    assert would_run(repository) == stages


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


def test_an_unknown_agent_stops_the_run_in_one_line_and_leaves_everything_as_it_was(repository: Path) -> None:
    before = contents(repository)
    row = {"query": "x", "agent": "sales_agent", "arguments": {}}
    (repository / "mine.jsonl").write_text(json.dumps(row) + "\n")
    set_params(repository, {"data.source": "mine.jsonl"})
    told = run(repository, sys.executable, "stages/generate.py", expect=1)
    assert re.fullmatch(r"error: mine\.jsonl:1: unknown agent 'sales_agent' \(known: .*\)\n", told)
    output = dvc(repository, "repro", expect=None)
    assert told in output
    assert "failed to reproduce 'generate'" in output
    assert contents(repository) == before


def test_an_ill_typed_parameter_stops_the_run_in_one_line_and_leaves_everything_as_it_was(repository: Path) -> None:
    before = contents(repository)
    set_params(repository, {"epochs": "many"})
    told = run(repository, sys.executable, "stages/train.py", expect=1)
    assert told == "error: params.yaml: epochs: Input should be a valid integer (got 'many')\n"
    output = dvc(repository, "repro", expect=None)
    assert told in output
    assert "failed to reproduce 'train'" in output
    assert contents(repository) == before
