"""Every attack on every defense on every kind of victim: it runs, or says in one line why it does not."""

from collections.abc import Callable

import pytest
from helpers import SmallGenerator, batch_of, fully_connected, small_victim
from releases import DEFENSES
from torch import nn

import gibench.attacks
from gibench.attacks import (
    RGAP,
    SPEAR,
    Attack,
    BiasAttack,
    Continuation,
    LabelInference,
    UndoTransformation,
    bayes_optimal,
    dlg,
    ggl,
    gias,
    gifd,
    gradinversion,
    idlg,
    inverting_gradients,
    inverting_gradients_legacy,
    inverting_gradients_modern,
    second_order,
)
from gibench.clients import FedSGD
from gibench.engine import Engine
from gibench.errors import ConfigurationError, GibenchError
from gibench.labels import ILRG, Given
from gibench.types import Observation, ThreatModel
from gibench.victims import VariationalBottleneck, Victim, seeded

OFF = Engine(compile="off", backend="generic")
ATTACKS: dict[str, Callable[[], Attack]] = {
    "bias": BiasAttack,
    "dlg": lambda: dlg(steps=1, engine=OFF),
    "idlg": lambda: idlg(steps=1, engine=OFF),
    "ig": lambda: inverting_gradients(steps=2, engine=OFF),
    "ig, modern": lambda: inverting_gradients_modern(steps=2, warm_up=1, engine=OFF),
    "ig, legacy": lambda: inverting_gradients_legacy(steps=2, engine=OFF),
    "bayes": lambda: bayes_optimal(steps=2, ramp_steps=1, engine=OFF),
    "gradinversion": lambda: gradinversion(
        steps=2, warm_up=1, batch_norm=None, group_start=1, restarts=2, labels=Given(), engine=OFF
    ),
    "gias": lambda: gias(generator=SmallGenerator(), latent_steps=1, weight_steps=1, restarts=1, engine=OFF),
    "gifd": lambda: gifd(generator=SmallGenerator(), steps=1, restarts=1, engine=OFF),
    "ggl": lambda: ggl(generator=SmallGenerator(), steps=1, population=4, engine=OFF),
    "r-gap": RGAP,
    "spear": lambda: SPEAR(max_samples=2000),
    "second order": lambda: second_order(steps=1, tv=1e-3, engine=OFF),
    "continuation": lambda: Continuation(attack=second_order(steps=1, tv=1e-3, engine=OFF), sharpness=(3.0,)),
    "labels": lambda: LabelInference(labels=ILRG()),
    "undo": lambda: UndoTransformation(attack=inverting_gradients(steps=2, engine=OFF)),
}


def with_bottleneck() -> Victim:
    def build() -> nn.Module:
        front = [nn.Conv2d(3, 2, 3, stride=2), nn.Sigmoid(), nn.Flatten(), nn.Linear(18, 12), nn.Sigmoid()]
        return nn.Sequential(*front, VariationalBottleneck(12, size=4), nn.Linear(12, 10))

    facts = {"architecture": "with bottleneck", "initialization": "default, seed 0"}
    return Victim(seeded(build, 0), image_shape=(3, 8, 8), num_classes=10, **facts)  # type: ignore[arg-type]


VICTIMS: dict[str, Callable[[], Victim]] = {
    "small": small_victim,
    "fully connected": fully_connected,
    "bottleneck": with_bottleneck,
    "batch norm": lambda: small_victim(batch_norm=True),
}


NO_BOTTLENECK = "the victim has no variational bottleneck"
FIRST_LAYER = "needs a first layer that is fully connected with bias and sees all 192 pixels; here it is Conv2d"
ONE_IMAGE = "iDLG's label rule is for batches of one image"

NO_CHAIN = "layer-by-layer inversion serves chains of Conv2d and Linear without bias"

REFUSED_CLIENTS = {
    ("Precode", "small"): NO_BOTTLENECK,
    ("Precode", "fully connected"): NO_BOTTLENECK,
    ("Precode", "batch norm"): NO_BOTTLENECK,
    ("DPSGD", "batch norm"): "has BatchNorm layers, which mix the examples of a batch",
}
REFUSED: list[tuple[str, set[str], set[str], str]] = [
    ("bias", {"none", *DEFENSES}, {"small", "bottleneck", "batch norm"}, FIRST_LAYER),
    ("spear", {"none", *DEFENSES}, {"small", "bottleneck", "batch norm"}, FIRST_LAYER),
    ("idlg", {"DPSGD", "InstaHide", "MixUp"}, set(VICTIMS), ONE_IMAGE),
    ("r-gap", {"none", *DEFENSES}, set(VICTIMS), NO_CHAIN),
    ("undo", {"none"}, set(VICTIMS), "UndoTransformation needs threat_model.defense to be 'known'; it is 'none'"),
    ("undo", set(DEFENSES) - {"ATS"}, set(VICTIMS), "UndoTransformation undoes ATS, the client has"),
]
"""Attack, defenses, victims, and the words of the error. The defenses that iDLG refuses have batches of two here."""

FAILS = {("spear", defense) for defense in set(DEFENSES) - {"ATS"}}
"""Attack and defense: no answer gets the attack's own certificate, update by update, and all images are NaN."""


def refusal(attack: str, defense: str, victim: str) -> str | None:
    found = [
        words
        for name, defenses, victims, words in REFUSED
        if name == attack and defense in defenses and victim in victims
    ]
    return found[0] if found else None


def observe(defense: str, victim: str) -> Observation:
    """Two updates, whose batches are as large as the defense needs."""
    flags = {
        "victim": "initial",
        "batch_norm": "eval" if victim == "batch norm" else "absent",
        "defense": "none" if defense == "none" else "known",
    }
    chosen = None if defense == "none" else DEFENSES[defense][0]
    client = FedSGD(VICTIMS[victim](), defense=chosen, threat_model=ThreatModel.model_validate(flags))
    return client(batch_of(2, 1 if defense == "none" else min(2, DEFENSES[defense][2])))


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("defense", ["none", *DEFENSES])
def test_every_pair_runs_or_is_refused_with_a_reason(defense: str, victim: str) -> None:
    if (defense, victim) in REFUSED_CLIENTS:
        with pytest.raises(ConfigurationError, match=REFUSED_CLIENTS[defense, victim]) as error:
            observe(defense, victim)
        assert "\n" not in str(error.value)
        return
    observation = observe(defense, victim)
    for attack, build in ATTACKS.items():
        words = refusal(attack, defense, victim)
        if words is None:
            found = build()(observation)
            assert found.images.shape == (2, observation.batch_size, 3, 8, 8)
            fails = (attack, defense) in FAILS
            assert (found.images.isnan() if fails else found.images.isfinite()).all(), attack
            assert (found.objective.isinf() if fails else found.objective.isfinite()).all(), attack
            continue
        with pytest.raises(GibenchError) as refused:
            build()(observation)
        assert words in str(refused.value), attack
        assert "\n" not in str(refused.value), attack


def test_every_attack_is_in_the_table() -> None:
    """But those that are built of others, and the interface."""
    built = {"Attack", "GradientMatching", "WrongUpdate", "prior_alone"}
    names = {
        "BiasAttack",
        "Continuation",
        "LabelInference",
        "RGAP",
        "SPEAR",
        "UndoTransformation",
        "bayes_optimal",
        "dlg",
        "ggl",
        "gias",
        "gifd",
        "gradinversion",
        "idlg",
        "inverting_gradients",
        "inverting_gradients_legacy",
        "inverting_gradients_modern",
        "second_order",
    }
    assert set(gibench.attacks.__all__) == built | names
    assert len(ATTACKS) == len(names)
