"""A row's whole trajectory is the same alone, together with others, and in chunks: every search, every back end."""

from collections.abc import Callable

import pytest
import torch
from helpers import batch_of, small_victim
from torch import Tensor

from gibench.attacks import GradientMatching
from gibench.attacks.posterior import Posterior, Row
from gibench.attacks.stages import Found, search_rows
from gibench.clients import FedSGD
from gibench.engine import Engine, Prepared
from gibench.labels import Given, LLGStar
from gibench.likelihoods import Cosine, Gaussian
from gibench.priors import TotalVariation
from gibench.progress import Step, watching
from gibench.search import LBFGS, Adam, Search, adam
from gibench.types import Observation, Reconstruction

UPDATES, RESTARTS = 3, 2
SEARCHES: dict[str, Callable[[], Search]] = {
    "adam": lambda: Adam(steps=50),
    "adam, signed": lambda: Adam(steps=50, signed=True),
    "adam, target": lambda: Adam(steps=50, rate=0.05, target=0.0085),
    "adam, patience": lambda: Adam(steps=50, rate=1.0, signed=True, schedule="constant", patience=4),
    "l-bfgs": lambda: LBFGS(steps=50, iterations=1),
    "l-bfgs, backtracking": lambda: LBFGS(steps=10, iterations=5, line_search="backtracking"),
    "l-bfgs, strong Wolfe": lambda: LBFGS(steps=10, iterations=5, line_search="strong_wolfe"),
    "l-bfgs, target": lambda: LBFGS(steps=10, iterations=5, line_search="strong_wolfe", target=1e-3),
}
STOPS = ("adam, target", "adam, patience", "l-bfgs, target")


def build(search: str, backend: str) -> GradientMatching:
    """Cosine and total variation for Adam; for L-BFGS the squared distance, over soft labels too."""
    first_order = search.startswith("adam")
    return GradientMatching(
        likelihood=Cosine() if first_order else Gaussian(),
        priors=[TotalVariation(weight=1e-3)] if first_order else [],
        search=SEARCHES[search](),
        labels=Given() if first_order else None,
        restarts=RESTARTS,
        engine=Engine(backend=backend, compile="off"),  # type: ignore[arg-type]
    )


def attack(
    search: str, backend: str, observation: Observation, limit: int | None
) -> tuple[Reconstruction, list[Tensor], list[Tensor]]:
    """Search `limit` rows together; return also each row's images (steps, ...) and objective (steps,)."""
    method = build(search, backend)
    method.prepare(observation).choice.row_limit = limit
    images: list[list[Tensor]] = []
    values: list[list[Tensor]] = []

    def keep(step: Step) -> None:
        if step.done == 1:
            images.append([])
            values.append([])
        images[-1].append(step.images().clone())
        values[-1].append(step.objective.clone())

    with watching(keep):
        found = method(observation)
    rows, lines = ([row for chunk in kept for row in torch.stack(chunk).unbind(1)] for kept in (images, values))
    assert len(rows) == RESTARTS * observation.updates
    return found, rows, lines


def assert_same_path(found: Tensor, expected: Tensor, what: str) -> None:
    """(steps, ...) each; who has finished first stays where it was, while others go on."""
    steps = max(len(found), len(expected))
    found, expected = (
        torch.cat([path, path[-1:].expand(steps - len(path), *path.shape[1:])]) for path in (found, expected)
    )
    torch.testing.assert_close(
        found, expected, rtol=1e-9, atol=1e-9, equal_nan=True, msg=lambda text: f"{what}: {text}"
    )


PAIRS = [(search, backend) for search in SEARCHES for backend in ("generic", "rules", "gram")]
FAST = {("adam", "generic"), ("adam, target", "rules"), ("l-bfgs, strong Wolfe", "rules")}


@pytest.mark.parametrize(
    ("search", "backend"),
    [pair if pair in FAST or pair[1] == "gram" else pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS],
)
def test_a_row_does_not_see_the_others(search: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a smooth victim, 50 steps, or 10 calls of 5 iterations: L-BFGS multiplies rounding in every iteration."""
    monkeypatch.setattr(adam, "CHECK", 10)
    observation = FedSGD(small_victim()).double()(batch_of(UPDATES, 1).to(torch.float64))
    single = [attack(search, backend, observation.select([update]), 1) for update in range(UPDATES)]
    evaluations = torch.cat([alone.gradient_evaluations for alone, _, _ in single])
    if search in STOPS:
        assert len(set(evaluations.tolist())) > 1, "rows are to finish at different times"
    for limit in (None, RESTARTS):
        found, images, values = attack(search, backend, observation, limit)
        assert torch.equal(found.gradient_evaluations, evaluations)
        for update, (alone, alone_images, alone_values) in enumerate(single):
            assert found.candidates is not None
            assert alone.candidates is not None
            torch.testing.assert_close(found.images[update], alone.images[0], rtol=0, atol=1e-9)
            torch.testing.assert_close(found.candidates[:, update], alone.candidates[:, 0], rtol=0, atol=1e-9)
            torch.testing.assert_close(found.objective[update], alone.objective[0], rtol=1e-9, atol=1e-9)
            for restart in range(RESTARTS):
                row = update * RESTARTS + restart
                assert_same_path(values[row], alone_values[restart], f"objective of {restart}, {update}")
                assert_same_path(images[row], alone_images[restart], f"images of {restart}, {update}")


@pytest.mark.parametrize("limit", [None, 2, 1])
def test_labels_are_asked_once_and_their_cost_is_counted(limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever chunks, and whatever the trials of back ends; the rows get their own labels."""
    rule = LLGStar(repetitions=2)
    observation = FedSGD(small_victim())(batch_of(UPDATES, 3))
    expected = rule(observation)
    assert len({tuple(labels) for labels in expected.tolist()}) == UPDATES
    asked: list[int] = []
    forward = LLGStar.forward

    def counted(self: LLGStar, observation: Observation) -> Tensor:
        asked.append(observation.updates)
        return forward(self, observation)

    monkeypatch.setattr(LLGStar, "forward", counted)
    method = GradientMatching(
        likelihood=Cosine(), search=Adam(steps=4), labels=rule, restarts=RESTARTS, engine=Engine(compile="off")
    )
    method.prepare(observation).choice.row_limit = limit
    chunks: list[int] = []

    def searched(attack: GradientMatching, posterior: Posterior, rows: list[Row], prepared: Prepared) -> Found:
        chunks.append(len(rows))
        return search_rows(attack, posterior, rows, prepared)

    monkeypatch.setattr("gibench.attacks.gradient_matching.search_rows", searched)
    found = method(observation)
    assert sum(chunks) == UPDATES * RESTARTS
    assert max(chunks) == (limit or UPDATES * RESTARTS)
    assert asked == [UPDATES]
    assert found.labels is not None
    assert torch.equal(found.labels, expected)
    given = GradientMatching(
        likelihood=Cosine(), search=Adam(steps=4), labels=Given(), restarts=RESTARTS, engine=method.engine
    )
    told = given(observation.model_copy(update={"labels": expected}))
    torch.testing.assert_close(found.images, told.images, rtol=1e-6, atol=1e-6)
    assert torch.equal(found.gradient_evaluations, told.gradient_evaluations + 20)
