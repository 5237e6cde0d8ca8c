"""Searches of a generator: latents, features in an l1-ball, weights; against copies, bisection and closed forms."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SmallGenerator, batch_of, small_victim
from hypothesis import given, settings
from hypothesis import strategies as st
from references import l1_ball
from torch import Tensor
from torch.nn import functional as F

from gibench.attacks import GradientMatching, gias, gifd
from gibench.clients import FedSGD
from gibench.errors import ConfigurationError, ThreatModelError, WeightsError
from gibench.labels import Given as GivenLabels
from gibench.likelihoods import Cosine, Gaussian
from gibench.search import Adam, Features, GeneratorWeights, Given, Latent, LevenbergMarquardt, Pixels, Stage
from gibench.search.l1_ball import project_to_l1_ball
from gibench.types import Batch, Observation, ThreatModel
from gibench.victims import Victim

VICTIM = small_victim().double()


def generator(**settings: Any) -> SmallGenerator:
    return SmallGenerator(**settings).double()


def drawn(made: SmallGenerator, updates: int, size: int) -> Batch:
    """Images of the generator's range."""
    batch = batch_of(updates, size)
    latents = torch.randn(updates * size, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    classes = None if made.num_classes is None else F.one_hot(batch.labels.flatten(), made.num_classes).double()
    images = made(latents, classes).detach().unflatten(0, (updates, size))
    return batch.model_copy(update={"images": images})


def observe(batch: Batch, victim: Victim = VICTIM, **known: Any) -> Observation:
    threat_model = ThreatModel(**{"victim": "initial", "batch_norm": "absent", **known})
    return FedSGD(victim, threat_model=threat_model)(batch.to(torch.float64))


@given(
    st.lists(st.floats(-5, 5).filter(lambda value: value == 0 or abs(value) > 1e-6), min_size=1, max_size=12),
    st.floats(1e-3, 20),
)
@settings(max_examples=60, deadline=None)
def test_the_projection_is_the_nearest_point_of_the_ball(point: list[float], radius: float) -> None:
    tensor = torch.tensor([point, [0.0] * len(point)], dtype=torch.float64)
    found = project_to_l1_ball(tensor, radius)
    np.testing.assert_allclose(found[0].numpy(), l1_ball.project(np.array(point), radius), atol=1e-9)
    assert torch.equal(found[1], tensor[1])
    torch.testing.assert_close(project_to_l1_ball(found, radius), found)


def test_a_latent_starts_from_its_seed_and_keeps_its_length() -> None:
    observation = observe(batch_of(2, 3))
    free, kept = Latent(generator=generator()), Latent(generator=generator(), norm="kept")
    start = free.start(observation, VICTIM, [5, 9])
    assert start.shape == (2, 3, 6)
    assert torch.equal(start[1], free.start(observation, VICTIM, [9])[0])
    lengths = kept.start(observation, VICTIM, [5, 9]).norm(dim=2)
    torch.testing.assert_close(lengths, torch.full_like(lengths, math.sqrt(6)))
    assert torch.equal(free.project(start, VICTIM), start)


@pytest.mark.parametrize("norm", ["free", "kept"])
def test_second_order_steps_find_a_latent_of_its_length(norm: Any) -> None:
    made = generator()
    latents = torch.randn(2, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    latents *= math.sqrt(6) / latents.norm(dim=1, keepdim=True)
    images = made(latents).unflatten(0, (2, 1))
    attack = GradientMatching(
        likelihood=Gaussian(sigma=1e-3),
        search=LevenbergMarquardt(steps=60),
        labels=GivenLabels(),
        pixels=Latent(generator=made, norm=norm),
        restarts=4,
    )
    found = attack(observe(batch_of(2, 1).model_copy(update={"images": images}))).images
    torch.testing.assert_close(found, images, atol=1e-8, rtol=0)


def test_decoding_runs_the_generator_with_the_classes() -> None:
    made = generator(num_classes=10)
    variable = torch.randn(2, 3, 6, dtype=torch.float64)
    labels = torch.tensor([[1, 2, 3], [4, 5, 6]])
    images = Latent(generator=made).decode(variable, VICTIM, Given(labels))
    expected = made(variable[1, 2][None], F.one_hot(torch.tensor([6]), 10).double())[0]
    torch.testing.assert_close(images[1, 2], expected)
    soft = F.one_hot(labels, 10).double()
    torch.testing.assert_close(Latent(generator=made).decode(variable, VICTIM, Given(soft)), images)
    with pytest.raises(ConfigurationError, match="of a class"):
        Latent(generator=made).decode(variable, VICTIM)


def test_the_latents_prior_adds_half_its_square_and_its_rows_say_the_same() -> None:
    batch = drawn(generator(), 1, 2)
    observation = observe(batch)

    def value(weight: float) -> tuple[Tensor, Tensor, Tensor]:
        attack = GradientMatching(
            likelihood=Gaussian(sigma=1.0),
            search=LevenbergMarquardt(steps=1),
            labels=GivenLabels(),
            pixels=Latent(generator=generator(), weight=weight),
        )
        objective, start = attack.problem(observation, [(0, 0)])
        found = objective(start)
        rows = objective.prior_residuals(start, objective.known(), observation)
        return found.value, start["pixels"], torch.cat([each.flatten() for each in rows]) if rows else torch.zeros(1)

    plain, latent, none = value(0.0)
    penalized, _, rows = value(0.3)
    torch.testing.assert_close(penalized - plain, 0.15 * latent.square().sum()[None])
    torch.testing.assert_close(rows.square().sum() / 2, 0.15 * latent.square().sum())
    assert not none.any()


def test_features_set_out_where_the_latent_ended_and_stay_in_the_ball() -> None:
    made, victim = generator(num_classes=10), VICTIM
    latent, features = Latent(generator=made), Features(generator=made, stage=1, radius=0.5)
    variable, known = torch.randn(2, 2, 6, dtype=torch.float64), Given(torch.tensor([[1, 2], [3, 4]]))
    start, kept = features.follow(latent, variable, victim, known)
    own = Given(known.labels, kept)
    torch.testing.assert_close(features.decode(start, victim, own), latent.decode(variable, victim, known))
    moved = features.project(torch.randn_like(start), victim)
    assert moved.flatten(2).abs().sum(2).max() <= 0.5 + 1e-12
    later, center = Features(generator=made, stage=2).follow(features, moved, victim, own)
    torch.testing.assert_close(
        Features(generator=made, stage=2).decode(later, victim, Given(known.labels, center)),
        features.decode(moved, victim, own),
    )


@pytest.mark.parametrize("stage", [0, 1])
def test_weights_draw_as_copies_of_the_generator_with_them_would(stage: int) -> None:
    made = generator(num_classes=10)
    weights, latent = GeneratorWeights(generator=made, stage=stage), Latent(generator=made)
    variable, known = torch.randn(2, 2, 6, dtype=torch.float64), Given(torch.tensor([[1, 2], [3, 4]]))
    start, kept = weights.follow(latent, variable, VICTIM, known)
    own = Given(known.labels, kept)
    torch.testing.assert_close(weights.decode(start, VICTIM, own), latent.decode(variable, VICTIM, known))
    moves = (0.1 * torch.randn_like(start)).requires_grad_()
    images = weights.decode(moves, VICTIM, own)
    (slope,) = torch.autograd.grad(images.square().sum(), moves)
    copied = copy.deepcopy(made)
    for parameter, move in zip(
        copied.parameters(), moves[1, 0].split([p.numel() for p in made.parameters()]), strict=True
    ):
        parameter.data += move.detach().view_as(parameter)
    copied.requires_grad_(True)
    assert known.labels is not None
    classes = F.one_hot(known.labels[1, :1], 10).double()
    drawn_alone = copied(kept["features"][1, :1], classes, first=stage)
    torch.testing.assert_close(images[1, 0], drawn_alone[0])
    drawn_alone.square().sum().backward()
    expected = [torch.zeros_like(p) if p.grad is None else p.grad for p in copied.parameters()]
    torch.testing.assert_close(slope[1, 0], torch.cat([each.flatten() for each in expected]))


def test_levenberg_marquardt_finds_the_latent_of_an_image_in_the_range() -> None:
    made = generator()
    batch = drawn(made, 3, 1)
    attack = GradientMatching(
        likelihood=Gaussian(sigma=1.0),
        search=LevenbergMarquardt(steps=40, single=False),
        labels=GivenLabels(),
        pixels=Latent(generator=made),
        restarts=4,
    )
    found = attack(observe(batch))
    torch.testing.assert_close(found.images, batch.images, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("side", "mode"), [(16, "area"), (4, "bilinear")])
def test_images_of_another_size_are_resampled_only_when_asked(side: int, mode: str) -> None:
    made = generator(side=side)
    observation = observe(batch_of(1, 1))
    with pytest.raises(ConfigurationError, match=f"{side} x {side} pixels, the images have 8 x 8; set resample"):
        gias(generator=made, latent_steps=1, weight_steps=0)(observation)
    latent = Latent(generator=made, resample=True)
    latent.check(observation)
    variable = torch.randn(1, 2, 6, dtype=torch.float64)
    images = made(variable[0])
    corners = {} if mode == "area" else {"align_corners": False}
    expected = F.interpolate(images, (8, 8), mode=mode, **corners)
    torch.testing.assert_close(latent.decode(variable, VICTIM)[0], expected)


def test_generators_that_do_not_fit_are_refused() -> None:
    made = generator()
    with pytest.raises(ConfigurationError, match=r"there is no stage 3 .* has 1 to 2"):
        Features(generator=made, stage=3)
    with pytest.raises(ConfigurationError, match=r"there is no stage 3; .* has 0 to 2"):
        GeneratorWeights(generator=made, stage=3)
    with pytest.raises(ConfigurationError, match="radius is 0"):
        Features(generator=made, stage=1, radius=0)
    with pytest.raises(ConfigurationError, match="norm is 'long'"):
        Latent(generator=made, norm="long")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="the weight of the latent's prior is -1"):
        Latent(generator=made, weight=-1)
    with pytest.raises(ConfigurationError, match="draws 7 classes, the victim knows 10"):
        gias(generator=generator(num_classes=7))(observe(batch_of(1, 1)))
    gray = generator()
    gray.image_shape = (1, 8, 8)
    with pytest.raises(ConfigurationError, match="draws 1 channels, the images have 3"):
        Latent(generator=gray).check(observe(batch_of(1, 1)))
    broken = generator()
    broken.first.weight[0, 0] = torch.nan
    with pytest.raises(WeightsError, match="hold NaN or infinity"):
        Latent(generator=broken)


def test_what_the_generator_learned_from_has_to_be_granted() -> None:
    made = generator()
    made.origin = "out_of_distribution"
    attack = gias(generator=made, latent_steps=1, weight_steps=0)
    with pytest.raises(ThreatModelError, match="prior_data"):
        attack(observe(batch_of(1, 1)))
    attack(observe(batch_of(1, 1), prior_data="in_distribution"))


def staged(*stages: Any, **options: Any) -> GradientMatching:
    first, *then = (Stage(pixels=pixels, search=Adam(steps=3)) for pixels in stages)
    return GradientMatching(
        likelihood=Cosine(), search=first.search, labels=GivenLabels(), pixels=first.pixels, then=then, **options
    )


def test_stages_that_cannot_follow_each_other_are_refused() -> None:
    made = generator()
    latent, features, weights = Latent(generator=made), Features(generator=made, stage=1), GeneratorWeights
    with pytest.raises(ConfigurationError, match="a search of the same generator"):
        staged(latent, Features(generator=generator(), stage=1))
    with pytest.raises(ConfigurationError, match="a search of the same generator"):
        staged(Pixels(), features)
    with pytest.raises(ConfigurationError, match="search the stages in order"):
        staged(latent, Features(generator=made, stage=2), features)
    with pytest.raises(ConfigurationError, match="takes no warm start"):
        staged(latent, initial=staged(Pixels()))
    with pytest.raises(ConfigurationError, match="features start where a latent ended"):
        staged(features)(observe(batch_of(1, 1)))
    with pytest.raises(ConfigurationError, match="searched weights"):
        staged(latent, weights(generator=made), weights(generator=made))(observe(batch_of(1, 1)))
    with pytest.raises(ConfigurationError, match="2 radii for 1 stages"):
        gifd(generator=made, stages=[1], radii=[1.0, 2.0])


def test_pixels_go_on_from_any_search() -> None:
    batch = drawn(generator(), 2, 1)
    observation = observe(batch)
    alone = staged(Latent(generator=generator()))(observation)
    both = staged(Latent(generator=generator()), Pixels())(observation)
    assert (both.objective <= alone.objective).all()
    assert both.gradient_evaluations.tolist() == [6, 6]
    assert not torch.equal(both.images, alone.images)
