"""params.yaml: numbers are numbers however they are written, and every mistake is one line that names the key."""

from pathlib import Path

import pytest

from router.errors import InputError
from router.params import load_params

DEFAULT = (Path(__file__).parent.parent / "params.yaml").read_text(encoding="utf-8")


def edited(tmp_path: Path, old: str, new: str) -> Path:
    assert DEFAULT.count(old) == 1, old
    path = tmp_path / "params.yaml"
    path.write_text(DEFAULT.replace(old, new), encoding="utf-8")
    return path


def test_the_defaults_are_functiongemmas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    params = load_params()
    assert (params.lr, params.epochs, params.batch_size, params.gradient_accumulation) == (1e-5, 15, 4, 3)
    assert (params.optimizer, params.weight_decay, params.warmup_ratio) == ("adamw_torch_fused", 0.02, 0.05)
    assert (params.scheduler, params.precision, params.base) == ("cosine", "auto", "embedded")
    assert (params.data.train, params.data.validation) == (92, 23)


@pytest.mark.parametrize("text", ["1e-5", "1e-05", "1.0e-5", "0.00001", "1E-5", "+1e-5"])
def test_a_learning_rate_is_a_number_however_it_is_written(tmp_path: Path, text: str) -> None:
    assert load_params(edited(tmp_path, "\nlr: 1.0e-5", f"\nlr: {text}")).lr == 1e-5


def test_a_whole_number_will_do_for_a_fraction(tmp_path: Path) -> None:
    assert load_params(edited(tmp_path, "weight_decay: 0.02", "weight_decay: 0")).weight_decay == 0.0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\nlr: 1.0e-5", "\nlr: fast", "lr: Input should be a valid number (got 'fast')"),
        ("\nlr: 1.0e-5", "\nlr: '1e-5'", "lr: Input should be a valid number (got '1e-5')"),
        ("\nlr: 1.0e-5", "\nlr: 0", "lr: Input should be greater than 0"),
        ("\nlr: 1.0e-5", "\nlr: .nan", "lr: "),
        ("\nlr: 1.0e-5", "\nlr: .inf", "lr: "),
        ("\nlr: 1.0e-5", "\nrate: 1.0e-5", "lr: missing"),
        ("epochs: 15", "epochs: '15'", "epochs: Input should be a valid integer (got '15')"),
        ("epochs: 15", "epochs: 1.5", "epochs: "),
        ("epochs: 15", "epochs: true", "epochs: "),
        ("epochs: 15", "epochs: 0", "epochs: Input should be greater than or equal to 1"),
        ("warmup_ratio: 0.05", "warmup_ratio: 1.0", "warmup_ratio: Input should be less than 1"),
        ("precision: auto", "precision: fp8", "precision: Input should be 'auto', 'fp32', 'bf16' or 'fp16'"),
        ("scheduler: cosine", "scheduler: cosin", "scheduler: "),
        ("  train: 92", "  train: many", "data.train: "),
        ("  train: 92", "  train: 92\n  training: 92", "data.training: unknown key"),
        ("seed: 42", "seed: 42\nsead: 43", "sead: unknown key"),
        ("share_prefix: true", "share_prefix: 1", "train.share_prefix: "),
        ("seed: 42", "seed: 42\nseed: 43", "not valid YAML: "),
        ("seed: 42", "seed: [42", "not valid YAML: "),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = edited(tmp_path, old, new)
    with pytest.raises(InputError) as caught:
        load_params(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"- 1\n", b"text", b"\xff\xfe"])
def test_a_file_that_holds_no_parameters_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"params\.yaml: "):
        load_params(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml: cannot be read \(No such file"):
        load_params(tmp_path / "nowhere.yaml")
