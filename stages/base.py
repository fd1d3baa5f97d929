"""Fetch the base model that is fine-tuned: the embedded one, one of the Hugging Face Hub, or a folder.

    python stages/base.py

Reads models/embedded, the Hub or a folder, as `base` says; writes models/base.
"""

import json
import shutil
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from router.errors import InputError, run
from router.params import Params, load_params

EMBEDDED = Path("models/embedded")
OUTPUT = Path("models/base")
FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]


def from_hub(repository: str, revision: str | None) -> Path:
    """The folder of a Hub checkpoint.

    Raises:
        InputError: there is no such model or revision, or token, licence or network is missing.
    """
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=FILES))
    except GatedRepoError:
        raise InputError(
            f"base {repository}: its licence must be accepted at https://huggingface.co/{repository} by the account "
            "whose token is used (set HF_TOKEN or run `hf auth login`)"
        ) from None
    except RevisionNotFoundError:
        raise InputError(
            f"revision {revision}: {repository} has no such revision on the Hub; check params.yaml"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise InputError(
            f"base {repository}: no such folder, and no such model on the Hub for this account; check the name, and "
            "log in with `hf auth login` if the model is private or gated"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).split("\n")[0][:150]
        raise InputError(
            f"base {repository}: the Hub cannot be reached ({reason}); go online, or set base: embedded"
        ) from None


def source(params: Params) -> Path:
    if params.base == "embedded":
        return EMBEDDED
    return Path(params.base) if Path(params.base).is_dir() else from_hub(params.base, params.revision)


def main() -> None:
    params = load_params()
    folder = source(params)
    weights = list(folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").exists():
        raise InputError(f"base {params.base}: {folder} is no Transformers checkpoint with safetensors weights")
    if folder.resolve() == OUTPUT.resolve():
        raise InputError(f"base {params.base}: that is where the base is written to; name another folder")
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(parents=True)
    for pattern in FILES:
        for file in sorted(folder.glob(pattern)):
            shutil.copyfile(file, OUTPUT / file.name)
    if params.base == "embedded":
        # The learning rates of params.yaml are FunctionGemma's; a much smaller network needs larger steps.
        config = json.loads((OUTPUT / "config.json").read_text(encoding="utf-8"))
        config["lr_scale"] = params.embedded.lr_scale
        (OUTPUT / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in OUTPUT.iterdir()) / 1e6
    print(f"{OUTPUT}: {params.base}, {size:.1f} MB")


if __name__ == "__main__":
    run(main)
