"""The doctor says what is there and what is missing, and fails for a model that cannot be attacked, alone."""

from importlib.metadata import version
from pathlib import Path

import pytest

from gibench.diagnostics import Finding, doctor, environment, environment_report


def report() -> dict[tuple[str, str], Finding]:
    return {(finding.topic, finding.name): finding for finding in environment_report()}


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No data sets and no weights: empty folders."""
    monkeypatch.setenv("GIBENCH_DATA", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("GIBENCH_WEIGHTS", raising=False)
    return tmp_path


def test_a_bare_machine_can_still_run_the_embedded_images(bare_machine: Path) -> None:
    findings = report()
    assert findings["data", "photographs"].level == "ok"
    for what in (("data", "cifar10"), ("data", "mnist"), ("weights", "lpips_alex"), ("weights", "lpips_vgg")):
        assert findings[what].level == "missing"
        assert "GIBENCH_" in findings[what].value
    assert str(bare_machine) in findings["data", "cifar10"].value


@pytest.mark.usefixtures("bare_machine")
def test_the_device_and_the_stack_are_reported() -> None:
    findings = report()
    assert "GiB" in findings["device", "cpu"].value
    assert findings["package", "torch"].value == version("torch")
    assert findings["package", "lightning"].level == "ok"


@pytest.mark.usefixtures("bare_machine")
def test_a_compromised_release_warns_and_a_missing_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "STACK", ("lightning", "not-a-package"))
    monkeypatch.setattr(environment, "COMPROMISED", {"lightning": (version("lightning"),)})
    findings = report()
    assert findings["package", "lightning"].level == "warning"
    assert "compromised" in findings["package", "lightning"].value
    assert findings["package", "not-a-package"].level == "missing"


@pytest.mark.usefixtures("bare_machine")
def test_cifar10_is_found(cifar10_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIBENCH_DATA", str(cifar10_root))
    assert report()["data", "cifar10"] == ("data", "cifar10", "50,000 prior, 2,000 tune, 8,000 score images", "ok")


@pytest.mark.usefixtures("bare_machine")
def test_lpips_is_found(weights_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIBENCH_WEIGHTS", str(weights_root))
    monkeypatch.setattr(environment, "BACKBONES", {"alex": environment.BACKBONES["alex"]})  # VGG takes seconds
    assert report()["weights", "lpips_alex"].level == "ok"


def test_damaged_weights_are_a_warning_with_the_file(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = environment.BACKBONES["alex"].file
    (bare_machine / file).write_bytes(b"damaged")
    monkeypatch.setenv("GIBENCH_WEIGHTS", str(bare_machine))
    finding = report()["weights", "lpips_alex"]
    assert finding.level == "warning"
    assert file in finding.value


@pytest.mark.usefixtures("bare_machine")
@pytest.mark.parametrize(
    ("model", "code", "said"),
    [
        (None, 0, "photographs"),
        ("torchvision.models.resnet18", 0, "11,689,512 parameters"),
        ("torchvision.models.mobilenet_v3_small", 1, "hardsigmoid_backward"),
        ("torchvision.models.no_such_model", 1, "no_such_model"),
    ],
)
def test_the_exit_code_is_the_models(
    model: str | None, code: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert doctor(model) == code
    assert said in capsys.readouterr().out
