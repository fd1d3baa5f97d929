"""Upload of finished folders to the Hugging Face Hub: each in one commit, or not at all."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from router.errors import InputError

KEPT = {".gitattributes"}
"""Made by the Hub itself; every other file that is not in the folder is removed there."""


@dataclass(frozen=True)
class Package:
    """A folder and where it goes."""

    kind: str
    """`model` or `dataset`, as the Hub calls it."""
    repository: str
    """owner/name"""
    folder: Path

    def __post_init__(self) -> None:
        """Refuse what cannot be a repository before any work is done."""
        try:
            validate_repo_id(self.repository)
        except HFValidationError:
            raise InputError(f"hub.{self.kind}_repo: {self.repository!r} is no owner/name of the Hub") from None

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())


def _advice(error: BaseException, package: Package) -> str:
    """What went wrong, and what to do. Told from the status alone: the client's messages may hold signed URLs."""
    while not isinstance(error, HfHubHTTPError) and error.__cause__ is not None:
        error = error.__cause__
    if not isinstance(error, HfHubHTTPError):
        return f"the connection broke ({type(error).__name__}); run the same command again, it goes on from there"
    status = error.response.status_code
    match status:
        case 401:
            return "the Hub does not accept the token (401); set HF_TOKEN to a valid one or run `hf auth login`"
        case 403:
            return (
                f"this account may not write there (403); check hub.{package.kind}_repo in params.yaml, and that the "
                "token has the right to write"
            )
        case 404:
            return f"the Hub does not know it (404); check hub.{package.kind}_repo in params.yaml"
        case 409:
            return (
                f"the name is taken, or someone else is writing there (409); choose another hub.{package.kind}_repo, "
                "or run the same command again"
            )
        case 429:
            wait = error.response.headers.get("Retry-After", "")
            return f"the Hub asks for a pause (429); run the same command again {f'in {wait} s' if wait else 'later'}"
        case _:
            return f"the Hub failed (status {status}); run the same command again, it goes on from there"


@contextmanager
def _told(package: Package) -> Iterator[None]:
    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{package.kind} {package.repository}: {_advice(error, package)}") from None


def upload(api: HfApi, packages: Sequence[Package], private: bool) -> list[str]:
    """Make each Hub repository hold exactly the files of its folder, by one commit; the addresses of the commits.

    All large files are sent before the first commit, and a commit takes effect whole, so that whatever fails, no
    repository is left half-written. Unchanged files are not sent again: a second call finishes a first one that broke.

    Raises:
        InputError: no token or no rights, the name is taken or public, or the network failed.
    """
    if not (api.token or get_token()):  # of the environment or the login
        raise InputError("no token for the Hub: set HF_TOKEN or run `hf auth login`")
    prepared: list[tuple[Package, list[CommitOperationAdd | CommitOperationDelete]]] = []
    for package in packages:
        name, kind = package.repository, package.kind
        with _told(package):
            api.create_repo(name, repo_type=kind, private=private, exist_ok=True)
            if private and not api.repo_info(name, repo_type=kind).private:
                raise InputError(
                    f"{kind} {name}: is there already and public, but hub.private is true; "
                    "make it private on the Hub, choose another name, or set hub.private: false"
                )
            files = package.files()
            additions = [CommitOperationAdd(file, package.folder / file) for file in files]
            api.preupload_lfs_files(name, additions, repo_type=kind, free_memory=False)
            gone = set(api.list_repo_files(name, repo_type=kind)) - {*files, *KEPT}
        prepared.append((package, [*additions, *(CommitOperationDelete(file) for file in sorted(gone))]))
    addresses = []
    for package, operations in prepared:
        with _told(package):
            commit = api.create_commit(package.repository, operations, commit_message="Publish", repo_type=package.kind)
        addresses.append(commit.commit_url)
    return addresses
