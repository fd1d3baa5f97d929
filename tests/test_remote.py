"""DVC remotes: what one clone pushes another pulls, and has nothing left to run.

The outputs are small stand-ins: which of them travel by Git and which by the remote is what dvc.yaml says.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo
from tiny import REPOSITORY

LEFT_OUT = ("models/", "metrics/", "plots/", "tests/", "optional/", "dvc.lock", "data/queries.jsonl")


def run(folder: Path, *command: str, **extra: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "DVC_", "AWS_"))}
    home = folder.parent
    alone = {"HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1", "DVC_SITE_CACHE_DIR": str(home / "site")}
    alone |= {"DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(folder), "AWS_EC2_METADATA_DISABLED": "true"}
    alone |= {f"GIT_{who}_{what}": "test@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(command, cwd=folder, env=kept | alone | extra, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def dvc(folder: Path, *arguments: str, **extra: str) -> str:
    return run(folder, sys.executable, "-m", "dvc", *arguments, **extra)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A committed repository with an output for every stage."""
    folder = tmp_path / "first"
    listed = run(REPOSITORY, "git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in listed:
        split = name in ("data/train.jsonl", "data/validation.jsonl", "data/test.jsonl")
        if (REPOSITORY / name).is_file() and not split and not name.startswith(LEFT_OUT):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, folder / name)
    run(folder, "git", "init", "--quiet")
    for out in Repo(str(folder)).index.outs:
        path = Path(out.fs_path)
        if path.suffix == "":
            path = path / "file"  # a model: a folder
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"stand-in of {path.relative_to(folder)}\n")
    dvc(folder, "commit", "--force")
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", "Run")
    return folder


def check_round_trip(first: Path, url: str, *options: tuple[str, str], **extra: str) -> None:
    dvc(first, "remote", "add", "--default", "storage", url)
    for name, value in options:
        dvc(first, "remote", "modify", "storage", name, value)
    run(first, "git", "commit", "--quiet", "--all", "--message", "Remote")
    dvc(first, "push", **extra)
    second = first.parent / "second"
    run(first.parent, "git", "clone", "--quiet", str(first), str(second))
    assert not (second / "models/router").exists()
    dvc(second, "pull", **extra)
    assert (second / "models/router/file").read_bytes() == (first / "models/router/file").read_bytes()
    output = dvc(second, "repro", **extra)
    assert "Running stage" not in output
    assert "up to date" in output
    assert run(second, "git", "status", "--porcelain") == ""


def test_second_clone_pulls_from_a_folder_and_runs_nothing(first: Path, tmp_path: Path) -> None:
    check_round_trip(first, str(tmp_path / "storage"))


def test_model_is_registered_as_an_artifact(first: Path) -> None:
    artifact = Repo(str(first)).artifacts.read()["dvc.yaml"]["router"]
    assert (artifact.path, artifact.type) == ("models/router", "model")


@pytest.mark.long
def test_second_clone_pulls_from_s3_and_runs_nothing(first: Path) -> None:
    pytest.importorskip("dvc_s3", reason="needs dvc-s3: pip install .[s3]")
    server_module = pytest.importorskip("moto.server", reason="needs an S3 on loopback: pip install 'moto[server]'")
    import boto3

    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        client = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
        )
        client.create_bucket(Bucket="storage")
        check_round_trip(first, "s3://storage/router", ("endpointurl", url), **keys)
        assert client.list_objects_v2(Bucket="storage")["KeyCount"] > 0
    finally:
        server.stop()
