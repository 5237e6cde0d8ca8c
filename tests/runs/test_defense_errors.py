"""What the command line says of defenses that do not fit: one line, and status 1, before anything is computed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Command = Callable[..., tuple[int, str, str]]

DATA = {"class_path": "gibench.data.Photographs", "init_args": {"updates": 2, "together": 2}}
MLP = {"class_path": "gibench.victims.mlp", "init_args": {"width": 4}}
NOISE = {"class_path": "gibench.defenses.GaussianNoise", "init_args": {"sigma": 0.1}}
BAYES = {"class_path": "gibench.attacks.bayes_optimal", "init_args": {"steps": 2, "ramp_steps": 1}}
OTHER = {"class_path": "gibench.defenses.Density", "init_args": {"assumed": NOISE}}


def defended(kind: str, **settings: Any) -> dict[str, Any]:
    return {"class_path": f"gibench.defenses.{kind}", "init_args": settings}


CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "sigma is -1.0; a standard deviation is at least 0": (defended("GaussianNoise", sigma=-1.0), "known", BAYES),
    "bits is 1; quantize to 2 or more": (defended("Quantization", bits=1), "known", BAYES),
    "the victim has no variational bottleneck": (defended("Precode"), "known", BAYES),
    "set threat_model.defense to 'known' or 'unknown'": (NOISE, "none", BAYES),
    "needs threat_model.defense to be 'none' or 'known'; it is 'unknown'": (NOISE, "unknown", BAYES),
    "the client's defense is RandomPruning(pruned=0.5": (
        defended("RandomPruning", pruned=0.5),
        "known",
        {**BAYES, "init_args": {**BAYES["init_args"], "likelihood": OTHER}},  # type: ignore[dict-item]
    ),
}


@pytest.mark.parametrize("words", CASES)
def test_a_defense_that_does_not_fit_is_one_line(words: str, gibench: Command, tmp_path: Path) -> None:
    defense, known, attack = CASES[words]
    threat = {"victim": "initial", "batch_norm": "absent", "defense": known}
    settings = {"victim": MLP, "defense": defense, "threat_model": threat}
    client = {"class_path": "gibench.clients.FedSGD", "init_args": settings}
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump({"data": DATA, "client": client, "attack": attack}))
    status, _, errors = gibench("run", path, "--out", tmp_path / "run", "--limit", 2)
    assert status == 1
    assert errors.startswith("gibench: "), errors
    assert errors.count("\n") == 1, errors
    assert words in errors
    assert not (tmp_path / "run" / "records.jsonl").exists()
