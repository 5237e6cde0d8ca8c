"""Group consistency: the consensus against numpy, registration of known moves, restarts that come together."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers import batch_of, small_victim
from hypothesis import given, settings
from hypothesis import strategies as st
from references import priors as slow
from scipy.ndimage import gaussian_filter, shift
from torch import Tensor

from gibench.attacks import GradientMatching, prior_alone
from gibench.clients import FedSGD
from gibench.engine import Engine
from gibench.errors import ConfigurationError
from gibench.labels import Given
from gibench.likelihoods import Cosine
from gibench.metrics import psnr
from gibench.priors import GroupConsistency, TotalVariation
from gibench.priors.group_consistency import consensus
from gibench.priors.registration import Registration, register
from gibench.search import LBFGS, Adam, Ball
from gibench.types import Observation, Reconstruction

MOVES: list[Registration] = ["translation", "flow"]


def observe(updates: int = 3, size: int = 2) -> Observation:
    return FedSGD(small_victim()).double()(batch_of(updates, size).to(torch.float64))


def attack(**settings: Any) -> GradientMatching:
    weight, group = settings.pop("weight", 0.05), settings.pop("group", {"start": 4, "refresh": 3})
    parts = {"search": Adam(steps=12), "restarts": 3, "engine": Engine(compile="off"), "labels": Given(), **settings}
    priors = [TotalVariation(weight=1e-3), GroupConsistency(weight=weight, **group)]
    return GradientMatching(likelihood=Cosine(), priors=priors, **parts)


def picture(side: int = 32) -> np.ndarray:
    """(3, side, side): a smooth picture, not periodic, with detail of some pixels."""
    noise = np.random.default_rng(3).standard_normal((3, side, side))
    smooth = gaussian_filter(noise, (0, 2.5, 2.5), mode="nearest")
    return 0.5 + 0.4 * smooth / np.abs(smooth).max()  # type: ignore[no-any-return]


@given(
    seed=st.integers(0, 10_000), labels=st.lists(st.integers(0, 2), min_size=1, max_size=4), restarts=st.integers(2, 4)
)
@settings(max_examples=30)
def test_the_consensus_is_the_mean_in_one_order(seed: int, labels: list[int], restarts: int) -> None:
    source = torch.Generator().manual_seed(seed)
    candidates = torch.rand(restarts, len(labels), 3, 3, 4, generator=source, dtype=torch.float64)
    found = consensus(candidates, torch.tensor(labels), "none")
    np.testing.assert_allclose(found.numpy(), slow.consensus(candidates.numpy(), labels), atol=1e-12)
    searched = consensus(candidates, None, "none")  # labels that each restart searches for itself settle nothing
    np.testing.assert_allclose(searched.numpy(), slow.consensus(candidates.numpy(), [0] * len(labels)), atol=1e-12)


def test_images_of_one_label_are_found_in_another_order() -> None:
    """Labels 5, 5, 7: the second restart has the first two in the other order, with a little noise."""
    first = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    other = first[[1, 0, 2]] + 0.01
    found = consensus(torch.stack([first, other]), torch.tensor([5, 5, 7]), "none")
    torch.testing.assert_close(found, torch.stack([first + 0.005, first[[1, 0, 2]] + 0.005]))


def test_a_lost_restart_has_no_say() -> None:
    candidates = torch.rand(3, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    alone = consensus(candidates[1:], torch.tensor([4, 4]), "none")
    candidates[0, 1, 0, 0, 0] = torch.nan
    found = consensus(candidates, torch.tensor([4, 4]), "none")
    assert torch.equal(found[1:], alone)
    assert found.isfinite().all()
    assert consensus(candidates[:1], torch.tensor([4, 4]), "none").isnan().any()


@pytest.mark.parametrize("kind", MOVES)
@pytest.mark.parametrize("move", [(2.0, -3.0), (-1.35, 0.6)])
def test_registration_undoes_a_known_shift(kind: Registration, move: tuple[float, float]) -> None:
    reference = picture()
    moved = shift(reference, (0, *move), order=3, mode="nearest")
    back = register(torch.from_numpy(moved)[None], torch.from_numpy(reference)[None], kind)[0].numpy()
    inner = (slice(None), slice(5, -5), slice(5, -5))  # what was moved out is lost
    before, after = (np.sqrt(((each - reference)[inner] ** 2).mean()) for each in (moved, back))
    assert after < 0.12 * before


@pytest.mark.parametrize("kind", MOVES)
def test_registration_leaves_what_fits_and_what_has_no_picture(kind: Registration) -> None:
    image, flat = torch.from_numpy(picture())[None], torch.full((1, 3, 32, 32), 0.5, dtype=torch.float64)
    for moving, reference in ((image, image), (flat, image), (flat, flat)):
        torch.testing.assert_close(register(moving, reference, kind), moving, rtol=0, atol=1e-6)
    assert register(image.float(), image.float(), kind).dtype == torch.float32


@pytest.mark.parametrize("kind", MOVES)
def test_the_registered_consensus_is_sharper_than_the_mean(kind: Registration) -> None:
    """Restarts that see one picture from four places: their mean is blurred, the registered mean much less."""
    reference = picture()
    views = np.stack(
        [shift(reference, (0, *move), order=3, mode="nearest") for move in ((0, 2), (0, -2), (2, 0), (-2, 0))]
    )
    candidates = torch.from_numpy(views)[:, None]
    blurred, sharp = (consensus(candidates, torch.tensor([1]), each)[0, 0].numpy() for each in ("none", kind))
    errors = [((each - reference)[:, 5:-5, 5:-5] ** 2).mean() for each in (blurred, sharp)]
    assert errors[1] < 0.3 * errors[0]


def test_the_value_is_the_distance_from_the_consensus_in_the_units_of_the_victim() -> None:
    observation = observe(2, 2).select([0, 0, 1, 1])
    images = torch.rand(4, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    std = np.array([0.2, 0.25, 0.3])[:, None, None]
    prior = GroupConsistency(weight=0.5, start=1, refresh=2)
    values = []
    for evaluation in range(4):
        moved = images + 0.1 * evaluation * images.square()
        changed = prior.advance(moved, observation)
        assert changed == (evaluation in (1, 3))
        values.append(prior(moved, observation))
        if changed:
            labels = observation.labels
            assert labels is not None
            pairs = [(moved[rows].numpy(), labels[rows[0]].tolist()) for rows in ([0, 1], [2, 3])]
            targets = np.concatenate([slow.consensus(each, known) for each, known in pairs])
        if evaluation:
            expected = 0.5 * np.sqrt((((moved.numpy() - targets) / std) ** 2).sum((2, 3, 4))).mean(1)
            np.testing.assert_allclose(values[-1].numpy(), expected, rtol=1e-6)
    assert not values[0].any()
    assert not prior.for_search()(images, observation).any()  # another search has another consensus


def spread(found: Reconstruction, observation: Observation) -> Tensor:
    """How far the restarts of each update are from their mean, in one order."""
    assert found.candidates is not None
    assert observation.labels is not None
    pairs = zip(found.candidates.unbind(1), observation.labels, strict=True)
    return torch.stack([(each - consensus(each, labels, "none")).square().mean().sqrt() for each, labels in pairs])


def test_restarts_are_pulled_together() -> None:
    """Labels of the second update repeat, so that its restarts agree up to the order."""
    observation = observe()
    assert observation.labels is not None
    assert len(observation.labels[1].unique()) == 1
    search = Adam(steps=40, schedule="cosine")
    apart, drawn, forced = (
        spread(attack(weight=weight, search=search)(observation), observation) for weight in (0.0, 1e-3, 1.0)
    )
    assert (drawn < 0.9 * apart).all(), (drawn, apart)
    assert (forced < 0.1 * apart).all(), (forced, apart)


@pytest.mark.parametrize("registration", ["none", "translation"])
def test_an_update_does_not_see_the_others(registration: str) -> None:
    """Together, alone, and in chunks of one update; also where restarts share what is observed."""
    observation = observe()
    settings = {"group": {"start": 4, "refresh": 3, "registration": registration}}
    method = attack(**settings)
    together = method(observation)
    small = attack(**settings)
    small.prepare(observation).choice.row_limit = 5
    torch.testing.assert_close(small(observation).candidates, together.candidates, rtol=0, atol=1e-9)
    assert together.candidates is not None
    for update in (2, 0):
        alone = method(observation.select([update]))
        torch.testing.assert_close(alone.candidates[:, 0], together.candidates[:, update], rtol=0, atol=1e-9)  # type: ignore[index]
        torch.testing.assert_close(alone.objective[0], together.objective[update], rtol=1e-9, atol=1e-9)
    shares = attack(**settings, engine=Engine(compile="off", backend="gram"))
    torch.testing.assert_close(shares(observation).candidates, together.candidates, rtol=0, atol=1e-6)


def test_every_search_starts_without_a_consensus() -> None:
    """Also after the evaluations by which the engine times itself."""
    observation = observe(1)
    method = attack()
    first = method(observation)
    objective, start = method.problem(observation, method.posterior(observation).rows)
    for _ in range(6):
        objective(start)
    assert torch.equal(first.images, method(observation).images)


def test_the_answer_is_the_best_under_the_last_consensus() -> None:
    """Before the first one the term is 0, which no later iterate could beat."""
    observation = observe(1)
    method = attack(weight=10.0, search=Adam(steps=12, rate=1e-4, schedule="constant"))
    objective, start = method.problem(observation, method.posterior(observation).rows)
    values, kept = [], []
    for _ in range(6):
        values.append(objective(start).value)
        kept.append(objective.value.clone())
    assert (values[4] > values[3] + 1).all()
    assert torch.equal(kept[3], values[0])
    assert torch.equal(kept[4], values[4])
    assert torch.equal(kept[5], values[4])


def test_it_works_without_the_update_and_after_other_searches() -> None:
    alone = prior_alone(attack())(observe())
    assert alone.images.isfinite().all()


def test_it_is_neither_compiled_nor_captured(caplog: pytest.LogCaptureFixture) -> None:
    observation = observe(1)
    method = attack(engine=Engine(compile="on"))
    prepared = method.prepare(observation)
    objective, _ = method.ready(observation, method.posterior(observation).rows, prepared)
    assert objective.fast is None
    assert not objective.capture
    assert "a prior couples restarts" in caplog.text


def test_too_little_memory_for_all_restarts_is_named() -> None:
    observation, method = observe(), attack()
    method.prepare(observation).choice.row_limit = 2
    with pytest.raises(ConfigurationError, match="3 coupled restarts are searched together; raise memory_gib"):
        method(observation)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"restarts": 1}, "raise restarts"),
        ({"ball": Ball(radius=1.0)}, "leave the ball out"),
        ({"search": LBFGS(steps=20)}, "search by Adam without target and patience"),
        ({"search": Adam(steps=20, target=0.1)}, "search by Adam without target and patience"),
        ({"search": Adam(steps=20, patience=2)}, "search by Adam without target and patience"),
        ({"search": Adam(steps=4)}, "begins after 4 of 4 steps"),
        ({"group": {"start": -1}}, "start -1"),
        ({"group": {"refresh": 0}}, "refresh 0"),
        ({"group": {"registration": "homography"}}, "choose none, translation, flow"),
    ],
)
def test_settings_that_contradict_it_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        attack(**settings)


def test_rows_that_leave_the_group_are_an_error() -> None:
    observation = observe(1)
    method = attack()
    objective, start = method.problem(observation, method.posterior(observation).rows)
    for _ in range(5):
        objective(start)
    rows = torch.tensor([0, 2])
    with pytest.raises(ConfigurationError, match="searched together, from start to end"):
        objective({name: value[rows] for name, value in start.items()}, rows)


def test_registered_restarts_score_by_their_pictures() -> None:
    """The measure of the picture, PSNR, agrees that a registered view is nearer."""
    reference = torch.from_numpy(picture())[None]
    moved = torch.from_numpy(shift(picture(), (0, 2, 1), order=3, mode="nearest"))[None]
    back = register(moved, reference, "flow")
    assert psnr(back[..., 5:-5, 5:-5], reference[..., 5:-5, 5:-5]) > 15 + psnr(
        moved[..., 5:-5, 5:-5], reference[..., 5:-5, 5:-5]
    )
