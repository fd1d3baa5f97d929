"""What flipped between two Git revisions."""

from pathlib import Path

import evaluated
import pytest

from router.errors import InputError
from router.metrics import read_metrics
from router.revisions import changes_since, compare


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three commits: nothing measured; queries 1, 2, 3, 4 and 12 wrong; 5 and 8 wrong."""
    folder = tmp_path_factory.mktemp("revisions")
    evaluated.git(folder, "init")
    evaluated.git(folder, "commit", "--allow-empty", "-m", "empty")
    evaluated.git(folder, "tag", "empty")
    for name, wrong in (("first", {1, 2, 3, 4, 12}), ("second", {5, 8})):
        made = evaluated.project(folder / name, set(), wrong)
        for part in ("plots", "metrics"):
            (folder / part).mkdir(exist_ok=True)
            for file in (made / part).iterdir():
                (folder / part / file.name).write_bytes(file.read_bytes())
        evaluated.git(folder, "add", "plots", "metrics")
        evaluated.git(folder, "commit", "-m", name)
        evaluated.git(folder, "tag", name)
    return folder


def test_flips_intervals_and_p_value(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    lines = compare("first", "second").splitlines()
    assert lines[0].startswith("first: 83.3% right (25/30, 95 % interval 66.4% to 92.7%")
    assert lines[1].startswith("second: 93.3% right (28/30")
    # Five fixed, two broken: 2 * (1 + 7 + 21) / 2**7.
    assert lines[2].startswith("5 fixed, 2 broken on 30 shared queries: +10.0 points")
    assert "McNemar p = 0.4531" in lines[2]
    assert [line.split(":")[0] for line in lines[3:]] == ["fixed"] * 5 + ["broken"] * 2
    assert "message 5" in lines[-2]
    assert "should be" in lines[-1]


def test_a_revision_against_itself(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    lines = compare("second", "HEAD").splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("0 fixed, 0 broken")


def test_the_command_line_prints_the_same(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    assert evaluated.run(repository, "-m", "router", "compare", "first", "second").strip() == compare("first", "second")


@pytest.mark.parametrize(("revision", "word"), [("nowhere", "nowhere"), ("empty", "predictions_after.csv")])
def test_what_is_not_there_is_told_in_one_line(
    repository: Path, monkeypatch: pytest.MonkeyPatch, revision: str, word: str
) -> None:
    monkeypatch.chdir(repository)
    with pytest.raises(InputError, match=word) as caught:
        compare(revision, "second")
    assert "\n" not in str(caught.value)


def test_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(InputError, match="not a git repository"):
        compare("HEAD", "HEAD")


def test_changes_against_the_committed_numbers(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    metrics = read_metrics("metrics/after.json")
    assert changes_since("HEAD", metrics) == "No change."
    assert changes_since("empty", metrics) == "No numbers are committed yet."
    assert "- accuracy: 0.8333 -> 0.9333 (+10.00 points)" in changes_since("first", metrics)
