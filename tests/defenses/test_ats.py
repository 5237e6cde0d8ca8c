"""ATS against Pillow, its random numbers against their laws, and the attacker who knows what was drawn."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers import batch_of, small_victim
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from scipy.stats import binom
from torch import Tensor

from gibench.attacks import GradientMatching, inverting_gradients
from gibench.clients import Client, FedSGD
from gibench.data.photographs import patches
from gibench.defenses import ATS, Density
from gibench.defenses.transformations import OPERATIONS, Operation, apply
from gibench.engine.graph import Traced
from gibench.errors import ConfigurationError
from gibench.labels import Given
from gibench.likelihoods import Cosine, Gaussian
from gibench.search import Adam
from gibench.types import ThreatModel
from gibench.victims import lenet

KINDS = sorted({operation.kind for operation in OPERATIONS} | {"shearX"})
POLICIES = ("7-4-15", "21-13-3", "21-13-3+7-4-15", "3-1-7+43-18-18", "6-9", "0-11-37", "8-12-2")


def photographs() -> NDArray[np.uint8]:
    return np.concatenate([patches(file)[0][::12] for file in ("coffee.png", "chelsea.png")])


def tensor(images: NDArray[np.uint8]) -> Tensor:
    """uint8 (N, H, W, C) -> float64 (N, C, H, W)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255


def by_pillow(operation: Operation, array: NDArray[np.uint8], sign: int) -> NDArray[np.uint8]:
    """The operation on one image, with the magnitudes of AutoAugment written out."""
    image = Image.fromarray(array)
    level = operation.level
    side = image.size[0] if operation.kind == "translateX" else image.size[1]
    matrices: dict[str, tuple[float, ...]] = {
        "shearX": (1, sign * np.linspace(0, 0.3, 10)[level], 0, 0, 1, 0),
        "shearY": (1, 0, 0, sign * np.linspace(0, 0.3, 10)[level], 1, 0),
        "translateX": (1, 0, sign * np.linspace(0, 150 / 331, 10)[level] * side, 0, 1, 0),
        "translateY": (1, 0, 0, 0, 1, sign * np.linspace(0, 150 / 331, 10)[level] * side),
    }
    enhancers: dict[str, Any] = {
        name: getattr(ImageEnhance, name.capitalize()) for name in ("brightness", "contrast", "color", "sharpness")
    }
    if operation.kind in matrices:
        how = Image.Resampling.BICUBIC if "shear" in operation.kind else Image.Resampling.NEAREST
        moved = image.transform(image.size, Image.Transform.AFFINE, matrices[operation.kind], how, fillcolor=(0, 0, 0))
        return np.asarray(moved)
    if operation.kind in enhancers:
        return np.asarray(enhancers[operation.kind](image).enhance(1 + sign * np.linspace(0, 0.5, 10)[level]))
    if operation.kind == "rotate":
        return np.asarray(image.rotate(np.linspace(0, 30, 10)[level], fillcolor=(128, 128, 128)))
    if operation.kind == "posterize":
        return np.asarray(ImageOps.posterize(image, int(np.round(np.linspace(8, 4, 10), 0)[level])))
    if operation.kind == "solarize":
        return np.asarray(ImageOps.solarize(image, int(np.ceil(np.linspace(256, 0, 10)[level]))))
    return np.asarray(getattr(ImageOps, operation.kind)(image))


@pytest.mark.parametrize("kind", KINDS)
def test_operations_are_those_of_pillow(kind: Any) -> None:
    """Pillow rounds the mean gray, the gray or the smooth image and then the result: 1.5 levels at most."""
    images = photographs()
    for level in range(10):
        operation = Operation(kind, level, 0.5)
        for sign in (1, -1) if operation.signed else (1,):
            found = 255 * apply(operation, tensor(images), sign).permute(0, 2, 3, 1).numpy()
            expected = np.stack([by_pillow(operation, image, sign) for image in images]).astype(float)
            error = np.abs(found - expected)
            if "shear" in kind:  # the kernels differ
                assert error.mean() < 0.7
                assert (error > 8).mean() < 1e-3
            elif kind == "rotate":  # which of two pixels is nearer may be undecided
                assert (error > 1e-6).mean() < 2e-3
            else:
                assert error.max() < 1.5
            assert np.abs(expected - images).max() > 0 or level <= 1


@pytest.mark.parametrize("operation", sorted(set(OPERATIONS)), ids=lambda each: f"{each.kind} {each.level}")
def test_operations_have_derivatives(operation: Operation) -> None:
    """Against differences, where nothing is clipped and no table is used; everywhere finite and not all zero."""
    source = torch.Generator().manual_seed(0)
    images = (0.3 + 0.2 * torch.rand(2, 3, 6, 7, generator=source, dtype=torch.float64)).requires_grad_()
    if operation.kind not in ("equalize", "posterize"):
        torch.autograd.gradcheck(lambda inputs: apply(operation, inputs, 1), images)
    (gradient,) = torch.autograd.grad(apply(operation, images, 1).sum(), images)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0 or operation.kind == "autocontrast"


def test_the_list_is_that_of_the_paper() -> None:
    """The two policies whose operations the papers state, and one of each end of the list."""
    assert len(OPERATIONS) == 50
    assert [OPERATIONS[number][:2] for number in (21, 13, 3)] == [
        ("translateX", 5),
        ("brightness", 5),
        ("translateX", 9),
    ]
    assert [OPERATIONS[number] for number in (7, 4, 15)] == [
        ("translateY", 2, 0.7),
        ("sharpness", 1, 0.8),
        ("brightness", 9, 0.7),
    ]
    assert (OPERATIONS[0], OPERATIONS[49]) == (("invert", 7, 0.1), ("autocontrast", 1, 0.9))


@pytest.mark.parametrize("probabilities", ["ignored", "listed"])
@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_drawn_has_its_law(policy: str, probabilities: Any) -> None:
    defense = ATS(policy=policy, probabilities=probabilities)
    count = 4000
    drawn = defense.draw(4, tuple(range(count // 4)))
    outcomes = defense.outcomes()
    frequencies = torch.stack([defense.agrees(drawn, outcome).sum() for outcome in outcomes])
    assert sum(outcome.probability for outcome in outcomes) == pytest.approx(1)
    assert frequencies.sum() == count
    for outcome, frequency in zip(outcomes, frequencies.tolist(), strict=True):
        low, high = binom.interval(1 - 1e-6, count, outcome.probability)
        assert low <= frequency <= high
    if probabilities == "ignored":
        assert not any(
            applied != (step < len(part.split("-")))
            for outcome in outcomes
            for part in [policy.split("+")[outcome.policy]]
            for step, applied in enumerate(outcome.applied)
        )


@pytest.mark.parametrize("policy", POLICIES)
def test_transforming_together_is_transforming_each_image_by_its_outcome(policy: str) -> None:
    """Against the operations one after the other, image by image; and the same alone as in a group."""
    defense = ATS(policy=policy, probabilities="listed")
    images = tensor(photographs())[:12].reshape(4, 3, 3, 32, 32)
    drawn = defense.draw(3, (5, 6, 7, 8))
    together = defense.transform(images, drawn)
    for update in range(4):
        alone = defense.draw(3, (5 + update,))
        torch.testing.assert_close(defense.transform(images[[update]], alone)[0], together[update])
        for position in range(3):
            rows = {name: value[update : update + 1, position : position + 1] for name, value in drawn.items()}
            (outcome,) = [each for each in defense.outcomes() if defense.agrees(rows, each).item()]
            expected = images[update, position]
            for operation, sign in defense.steps(outcome):
                expected = apply(operation, expected, sign)
            torch.testing.assert_close(together[update, position], expected)


def client(policy: str, **flags: Any) -> Client:
    defense = {name: flags.pop(name) for name in ("target",) if name in flags}
    known = {"victim": "initial", "batch_norm": "absent", "defense": "known", **flags}
    return FedSGD(small_victim(), defense=ATS(policy=policy, **defense), threat_model=ThreatModel(**known)).double()


@pytest.mark.parametrize("policy", POLICIES)
def test_who_knows_what_was_drawn_explains_the_update_exactly(policy: str) -> None:
    batch = batch_of(3, 2).to(torch.float64)
    observation = client(policy, defense_randomness="known")(batch)
    hypothesis = Density(distance=Gaussian()).hypothesis(observation)
    simulate = hypothesis.observation.simulate
    at_truth = hypothesis.likelihood(simulate(batch.images, batch.labels, **hypothesis.known), observation.update)
    plain = hypothesis.likelihood(observation.simulate(batch.images, batch.labels), observation.update)
    assert (at_truth < 1e-20).all()
    assert plain.max() > 1e-6
    alone = client(policy, defense_randomness="known")(
        batch.model_copy(update={name: getattr(batch, name)[1:2] for name in type(batch).model_fields})
    )
    for name, value in observation.update.items():
        torch.testing.assert_close(alone.update[name][0], value[1])


def test_who_does_not_know_it_compares_transformed_images() -> None:
    batch = batch_of(3, 2).to(torch.float64)
    sender = client("7-4-15", target="transformed")
    observation = sender(batch)
    hypothesis = Density(distance=Gaussian()).hypothesis(observation)
    transformed = sender.target(batch).images
    assert hypothesis.observation is observation
    assert not hypothesis.known
    assert not torch.equal(transformed, batch.images)
    assert torch.equal(client("7-4-15").target(batch).images, batch.images)
    at_transformed = hypothesis.likelihood(observation.simulate(transformed, batch.labels), observation.update)
    assert (at_transformed < 1e-20).all()


def test_a_known_transformation_is_searched_through() -> None:
    """The search explains the update, and rows select what was drawn for them."""
    batch = batch_of(3, 1).to(torch.float64)
    observation = client("7-4-15+21-13-3", defense_randomness="known")(batch)
    attack = GradientMatching(
        likelihood=Density(distance=Cosine()), search=Adam(steps=80, rate=0.1), labels=Given(), restarts=2
    )
    found = attack(observation)
    blind = inverting_gradients(steps=80, signed=False, tv=0.0, restarts=2)(observation)
    assert (found.objective < 0.05).all()
    assert not torch.equal(found.images, blind.images)
    alone = attack(observation.select([1]))
    torch.testing.assert_close(alone.images[0], found.images[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("policy", ["21-13-3+7-4-15", "6-9-2", "11-37-8", "0-1-12"])
def test_an_evaluation_with_a_known_transformation_is_traced(policy: str) -> None:
    """The graph serves other transformations than those it was traced with: it takes no decision on them."""
    batch = batch_of(2, 1).to(torch.float64)
    observation = client(policy, defense_randomness="known")(batch)
    attack = GradientMatching(likelihood=Density(distance=Gaussian()), search=Adam(steps=1), labels=Given())
    objective, start = attack.problem(observation, [(0, 0), (0, 1)])
    known = objective.known()
    graph = Traced(objective.evaluate, start, known)
    other = known._replace(given=ATS(policy=policy, probabilities="listed").draw(1, (3, 4)))
    for tensors in (known, other):
        (value, gradient), match = graph(start, tensors)
        (expected, slope), _ = objective.evaluate(start, tensors)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(match, expected)
        torch.testing.assert_close(gradient, slope)


@pytest.mark.parametrize("policy", ["", "7-4-", "50", "7,4", "1-2-3-4", "7-4-15+", "-1"])
def test_other_policies_are_refused(policy: str) -> None:
    with pytest.raises(ConfigurationError, match="policy is"):
        ATS(policy=policy)


def test_settings_and_shapes_are_checked() -> None:
    with pytest.raises(ConfigurationError, match="target"):
        ATS(target="both")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="probabilities"):
        ATS(probabilities="all")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="2"):
        FedSGD(lenet(image_shape=(2, 16, 16)), defense=ATS())
    assert ATS(target="transformed").settings() == {
        "policy": "7-4-15",
        "probabilities": "ignored",
        "target": "transformed",
    }


@pytest.mark.parametrize("policy", POLICIES)
def test_gray_images_of_any_size_are_transformed_as_pillow_does(policy: str) -> None:
    """One channel: color leaves it as it is, as it does images that Pillow knows to be gray."""
    source = torch.Generator().manual_seed(1)
    gray = torch.rand(3, 1, 1, 28, 20, generator=source, dtype=torch.float64)
    defense = ATS(policy=policy)
    drawn = defense.draw(1, (1, 2, 3))
    three = defense.transform(gray.expand(-1, -1, 3, -1, -1), drawn)
    torch.testing.assert_close(defense.transform(gray, drawn).expand_as(three), three, rtol=1e-3, atol=2e-4)
