"""What is read off an attack's configuration: its prior family, its title, its citation."""

from typing import Any

import pytest

from gibench.errors import ConfigurationError
from leaderboard.exports import bibtex_key
from leaderboard.methods import KNOWN, describe, family

GENERATOR = {"class_path": "generators.load_generator", "init_args": {"path": "vae_photographs_tiny.safetensors"}}


def part(path: str, /, **settings: Any) -> dict[str, Any]:
    return {"attack": {"class_path": path, "init_args": settings}}


@pytest.mark.parametrize(
    ("configuration", "expected"),
    [
        (part("gibench.attacks.dlg", steps=1), "none"),
        (part("gibench.attacks.inverting_gradients", steps=1, tv=0.1), "handcrafted"),
        (part("gibench.attacks.inverting_gradients", steps=1, tv=0.0), "none"),
        (part("gibench.attacks.BiasAttack"), "closed form"),
        (part("gibench.attacks.SPEAR"), "closed form"),
        (part("gibench.attacks.LabelInference", labels={"class_path": "gibench.labels.IDLG"}), "closed form"),
        (part("inverters.LearningToInvert", path="nowhere.safetensors"), "learned inverter"),
        (part("generators.anything"), "generative"),
        (part("gibench.attacks.gifd", generator=GENERATOR), "generative"),
        (part("gibench.attacks.gias", generator=GENERATOR, tv=0.0), "generative"),
        (
            part(
                "gibench.attacks.GradientMatching",
                likelihood={"class_path": "gibench.likelihoods.Cosine"},
                search={"class_path": "gibench.search.Adam", "init_args": {"steps": 1}},
                labels={"class_path": "gibench.labels.Given"},
                initial={"class_path": "gibench.attacks.inverting_gradients", "init_args": {"tv": 0.1}},
            ),
            "handcrafted",
        ),
        (part("gibench.attacks.not_there"), None),
    ],
)
def test_the_family_is_read_off_the_parts(configuration: dict[str, Any], expected: str | None) -> None:
    assert family(configuration) == expected


def test_label_rules_go_by_their_own_name() -> None:
    found = describe("x", part("gibench.attacks.LabelInference", labels={"class_path": "gibench.labels.ILRG"}), {})
    assert found.title == "iLRG (labels)"
    assert found.citation
    assert found.citation.year == 2023


def test_own_methods_need_no_citation_and_known_ones_can_be_renamed() -> None:
    assert describe("x", part("gibench.attacks.second_order"), {"family": "none"}).fidelity == "own"
    found = describe("x", part("gibench.attacks.dlg"), {"title": "DLG, ten restarts", "fidelity": "verified"})
    assert (found.title, found.fidelity) == ("DLG, ten restarts", "verified")


def test_unknown_attacks_are_asked_for() -> None:
    with pytest.raises(ConfigurationError, match="--about FILE"):
        describe("x", part("mine.attack"), {})


def test_works_have_keys_of_their_own() -> None:
    works = {citation.title for _, citation in KNOWN.values() if citation}
    assert len({bibtex_key(citation) for _, citation in KNOWN.values() if citation}) == len(works)
