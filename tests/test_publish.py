"""Publishing, against a Hub on loopback: what arrives works elsewhere, and what breaks leaves nothing half-done."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import _http
from local_hub import READ_ONLY, TOKEN, Fault, Hub, running
from publication import HUB, copy_of, run_stage
from tiny import REPOSITORY
from transformers import AutoModelForCausalLM, AutoTokenizer

from router.errors import InputError
from router.examples import read_conversations
from router.functiongemma import parse
from router.hub import Package, upload
from router.router import Router

MODEL, DATASET = ("model", HUB["model_repo"]), ("dataset", HUB["dataset_repo"])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    with running() as hub:
        yield hub


def packages(folder: Path) -> list[Package]:
    return [
        Package("dataset", str(HUB["dataset_repo"]), folder / "data/package"),
        Package("model", str(HUB["model_repo"]), folder / "models/package"),
    ]


def publish(hub: Hub, folder: Path, token: str = TOKEN, private: bool = True) -> list[str]:
    return upload(HfApi(endpoint=hub.url, token=token), packages(folder), private)


def held(hub: Hub, kind: str, name: object) -> dict[str, bytes]:
    files = dict(hub.repositories[kind, str(name)].files)
    files.pop(".gitattributes")
    return files


def on_disk(package: Package) -> dict[str, bytes]:
    return {name: (package.folder / name).read_bytes() for name in package.files()}


def environment(hub: Hub, folder: Path, token: str | None = TOKEN) -> dict[str, str]:
    """Of a process that knows no Hub but ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    kept |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder / "home"), "HOME": str(folder)}
    kept |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return kept | ({"HF_TOKEN": token} if token else {})


def python(code: str, environment: dict[str, str], folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_package_holds_exactly_what_others_need(publishable: Path) -> None:
    assert packages(publishable)[1].files() == sorted(
        ["README.md", "agents.yaml", "chat_template.jinja", "config.json", "generation_config.json", "router.json"]
        + ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "tools.json"]
        + [f"metrics/{name}.json" for name in ("after", "baselines", "before", "comparison", "data")]
    )
    settings = json.loads((publishable / "models/package/generation_config.json").read_text())
    vocabulary = AutoTokenizer.from_pretrained(publishable / "models/package").get_vocab()
    stops = ["<eos>", "<start_function_response>", "<end_of_turn>"]
    assert settings["do_sample"] is False
    assert settings["eos_token_id"] == [vocabulary[token] for token in stops]


def test_plain_transformers_gives_the_calls_of_the_router(publishable: Path) -> None:
    folder = publishable / "models/package"
    router = Router.from_pretrained(folder, device="cpu")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    tools = json.loads((folder / "tools.json").read_text())
    valid = 0
    for example in read_conversations(publishable / "data/test.jsonl"):
        messages = [
            {"role": "developer", "content": router.settings.system},
            {"role": "user", "content": example.query},
        ]
        inputs = tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=64)
        answer = parse(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]))
        agents = {agent.name: agent for agent in router.agents}
        if len(answer.calls) != 1 or answer.calls[0].name not in agents:
            continue
        call = answer.calls[0]
        if agents[call.name].problem_with(call.arguments) is None:
            valid += 1
            route = router.route(example.query)
            assert (call.name, call.arguments) == (route.agent, route.arguments)
    assert valid >= 5  # or the model has learnt nothing and the comparison says nothing


def test_stage_publishes_and_a_fresh_process_loads_it(publishable: Path, hub: Hub, tmp_path: Path) -> None:
    project = copy_of(publishable, tmp_path / "project")
    env = environment(hub, tmp_path)
    done = subprocess.run(
        [sys.executable, REPOSITORY / "stages/publish.py"], env=env, cwd=project, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert TOKEN not in done.stdout + done.stderr
    for package, kind in zip(packages(project), (DATASET, MODEL), strict=True):
        assert held(hub, *kind) == on_disk(package)
        assert len(hub.repositories[kind].commits) == 2  # the Hub's own and ours
        assert hub.repositories[kind].private
        assert not any(TOKEN.encode() in content for content in held(hub, *kind).values())

    card = (project / "models/package/README.md").read_text()
    snippet = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[1]
    code = f"""
from router import Router
from datasets import load_dataset
import json
router = Router.from_pretrained("{HUB["model_repo"]}")
flat = load_dataset("{HUB["dataset_repo"]}")
talks = load_dataset("{HUB["dataset_repo"]}", "conversations")
routes = [[r.agent, r.arguments, round(r.score, 5)] for r in router.route_many(flat["test"]["query"])]
print(json.dumps({{"routes": routes, "flat": {{k: v.to_list() for k, v in flat.items()}},
                  "talks": {{k: v.to_list() for k, v in talks.items()}}}}))
{snippet}"""
    first, answer = python(code, env, tmp_path).strip().split("\n", 1)
    loaded = json.loads(first)
    router = Router.from_pretrained(project / "models/router", device="cpu")
    for split in ("train", "validation", "test"):
        original = [json.loads(line) for line in (project / f"data/{split}.jsonl").read_text().splitlines()]
        assert loaded["talks"][split] == original
        rows = read_conversations(project / f"data/{split}.jsonl")
        assert [row["query"] for row in loaded["flat"][split]] == [row.query for row in rows]
        assert [json.loads(row["arguments"]) for row in loaded["flat"][split]] == [row.arguments for row in rows]
    queries = [row["query"] for row in loaded["flat"]["test"]]
    assert loaded["routes"] == [[r.agent, r.arguments, round(r.score, 5)] for r in router.route_many(queries)]
    assert parse(answer.strip()).calls[0].name == loaded["routes"][0][0]  # the card's own lines, as they stand there


def test_dry_run_uploads_nothing_and_says_what_would_go_where(
    publishable: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_stage(copy_of(publishable, tmp_path / "project", dry_run=True), "publish")
    printed = capsys.readouterr().out
    assert "models/package -> private model someone/router" in printed
    assert "nothing uploaded" in printed
    assert not hub.requests


def test_second_run_sends_nothing_and_removes_what_is_gone(publishable: Path, hub: Hub, tmp_path: Path) -> None:
    project = copy_of(publishable, tmp_path / "project")
    publish(hub, project)
    hub.requests.clear()
    publish(hub, project)
    assert not [line for line in hub.requests if line.startswith("PUT") or "/commit/" in line]
    (project / "data/package/conversations/test.jsonl").unlink()
    publish(hub, project)
    assert held(hub, *DATASET) == on_disk(packages(project)[0])


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault("POST /api/repos/create", 401), "does not accept the token"),
        (Fault("POST .*preupload", 403), "may not write there"),
        (Fault("POST .*commit", 409), "name is taken"),
        (Fault("POST /api/repos/create", 429, headers={"Retry-After": "7"}), "again in 7 s"),
        (Fault("POST .*models.*commit", 500, times=1), "run the same command again"),
        (Fault("PUT /lfs/"), "connection broke"),
        (Fault("POST .*lfs/objects/batch", 503), "run the same command again"),
    ],
)
def test_fault_is_one_line_leaves_nothing_half_done_and_is_mended_by_a_second_run(
    publishable: Path, hub: Hub, fault: Fault, told: str
) -> None:
    hub.faults.append(fault)
    with pytest.raises(InputError, match=told) as error:
        publish(hub, publishable)
    assert "\n" not in str(error.value)
    assert TOKEN not in str(error.value)
    assert "signature" not in str(error.value)
    for package in packages(publishable):
        found = hub.repositories.get((package.kind, package.repository))
        assert found is None or held(hub, package.kind, package.repository) in ({}, on_disk(package))
    hub.faults.clear()
    publish(hub, publishable)
    for package in packages(publishable):
        assert held(hub, package.kind, package.repository) == on_disk(package)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT /lfs/", times=1),
        Fault("PUT /lfs/", 500, times=1),
        Fault("POST .*preupload", 429, times=1, headers={"Retry-After": "1"}),
    ],
)
def test_what_passes_by_itself_is_waited_for(publishable: Path, hub: Hub, fault: Fault) -> None:
    hub.faults.append(fault)
    publish(hub, publishable)
    assert fault.times == 0
    assert held(hub, *MODEL) == on_disk(packages(publishable)[1])


def test_token_that_only_reads_and_no_token_are_told(
    publishable: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="may not write there"):
        publish(hub, publishable, READ_ONLY)
    monkeypatch.setattr("router.hub.get_token", lambda: None)
    with pytest.raises(InputError, match="no token for the Hub"):
        upload(HfApi(endpoint=hub.url), packages(publishable), True)
    assert not hub.repositories


def test_private_data_never_go_into_a_public_repository(publishable: Path, hub: Hub) -> None:
    HfApi(endpoint=hub.url, token=TOKEN).create_repo(str(HUB["model_repo"]), private=False)
    with pytest.raises(InputError, match="already and public"):
        publish(hub, publishable)
    assert not held(hub, *MODEL)
    assert not held(hub, *DATASET)


def test_unusable_name_and_foreign_metrics_are_told(publishable: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"hub\.model_repo"):
        run_stage(copy_of(publishable, tmp_path / "name", model_repo="a/b/c"), "publish")
    project = copy_of(publishable, tmp_path / "metrics")
    after = json.loads((project / "metrics/after.json").read_text())
    after["abstention"]["threshold"] = 0.9
    (project / "metrics/after.json").write_text(json.dumps(after))
    with pytest.raises(InputError, match="another threshold"):
        run_stage(project, "publish")


def test_download_goes_on_after_a_dropped_connection(publishable: Path, hub: Hub, tmp_path: Path) -> None:
    publish(hub, publishable)
    drop = Fault(r"GET .*model\.safetensors", times=1)
    hub.faults.append(drop)
    start = time.monotonic()
    file = HfApi(endpoint=hub.url, token=TOKEN).hf_hub_download(
        str(HUB["model_repo"]), "model.safetensors", cache_dir=tmp_path
    )
    assert drop.times == 0
    assert Path(file).read_bytes() == held(hub, *MODEL)["model.safetensors"], time.monotonic() - start
