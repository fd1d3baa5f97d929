"""A typed, validated view of params.yaml. Knows nothing of the rest of the library but its error."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from router.errors import InputError

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    # Strict: `epochs: "15"` is a mistake, not a number. Integers still pass as floats (lr_scale: 50).
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TrainParams(Section):
    share_prefix: bool
    max_length: PositiveInt
    """Tokens of one whole example."""
    processes: PositiveInt
    accelerate_config: str | None
    lora_rank: Count


class DataParams(Section):
    source: str
    test_source: str
    limit: PositiveInt | None
    augment: Count
    train: PositiveInt
    validation: PositiveInt
    negatives: Count


class RouterParams(Section):
    system: Annotated[str, Field(min_length=1)]
    max_query_tokens: PositiveInt
    target_precision: Fraction


class EmbeddedParams(Section):
    vocabulary: Annotated[int, Field(ge=400)]
    hidden: PositiveInt
    layers: PositiveInt
    steps: PositiveInt
    lr: Annotated[float, Field(gt=0)]
    lr_scale: Annotated[float, Field(gt=0)]


class HubParams(Section):
    model_repo: str
    dataset_repo: str
    private: bool
    dry_run: bool


class Params(Section):
    seed: Count
    agents: str
    base: Annotated[str, Field(min_length=1)]
    revision: str | None
    lr: Annotated[float, Field(gt=0)]
    epochs: PositiveInt
    batch_size: PositiveInt
    gradient_accumulation: PositiveInt
    optimizer: Literal["adamw_torch_fused", "adamw_torch", "adafactor", "sgd"]
    weight_decay: Annotated[float, Field(ge=0)]
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)]
    scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"]
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    train: TrainParams
    data: DataParams
    router: RouterParams
    embedded: EmbeddedParams
    hub: HubParams


def first_problem(error: ValidationError) -> str:
    """The first problem of a pydantic error as `key: what is wrong`, in one line."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"] if part != "[key]") or "the whole"
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    if problem["type"] == "missing":
        return f"{key}: missing"
    value = repr(problem["input"])
    shown = value if len(value) <= 60 else value[:57] + "..."
    return f"{key}: {problem['msg'].removeprefix('Value error, ')} (got {shown})"


def load_yaml(path: str | Path) -> Any:
    """The content of a YAML 1.2 file, as DVC reads it. PyYAML would give the text '1e-05' for `lr: 1e-05`.

    Raises:
        InputError: the file cannot be read or is not YAML.
    """
    try:
        return YAML(typ="safe").load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check params.yaml.

    Raises:
        InputError: the file is missing or not YAML, or a key is unknown, missing, ill-typed or out of range.
    """
    try:
        return Params.model_validate(load_yaml(path))
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error)}") from None
