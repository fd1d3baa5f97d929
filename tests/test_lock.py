"""What is committed belongs together: the embedded checkpoint, and the text and code that dvc.lock says made it."""

from pathlib import Path

import pytest
from dvc.repo import Repo

ROOT = Path(__file__).parent.parent


def test_the_embedded_checkpoint_was_built_from_the_text_and_code_beside_it() -> None:
    if not (ROOT / "dvc.lock").exists():
        pytest.skip("dvc.lock is not committed: the pipeline has not been run")
    with Repo(str(ROOT)) as repository:
        stage = repository.stage.load_one(name="embedded")
        assert stage.frozen
        stage.frozen = False  # a frozen stage does not look at its dependencies
        with repository.lock:
            assert stage.status() == {}
