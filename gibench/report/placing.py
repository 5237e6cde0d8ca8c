"""Where names go in a drawing: beside what they name, and neither on another name nor, where possible, on a line."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

ASCENT, DESCENT = 12.0, 4.0  # of a name above and below its base line, in pixels
CHARACTER, SMALL_CHARACTER = 7.6, 6.8  # width of one in bold and in small type, the largest that a page shows
_ON_A_NAME, _OUTSIDE = 500.0, 1e5
_TURNS = 3


class Box(NamedTuple):
    """A rectangle in pixels; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Box") -> bool:
        """Whether the two share more than an edge."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


class Obstacle(NamedTuple):
    """What a name should not cover, and how much it matters."""

    box: Box
    weight: float


@dataclass(frozen=True)
class Spot:
    """One place for a name: the start of its base line, and how far that is from what it names."""

    x: float
    y: float
    width: float
    distance: float

    @property
    def box(self) -> Box:
        """What the name covers there."""
        return Box(self.x, self.y - ASCENT, self.x + self.width, self.y + DESCENT)


def width_of(name: str) -> float:
    """Return about how many pixels a name takes."""
    return CHARACTER * len(name)


def around(x: float, span: tuple[float, float, float], name: str, margin: Box) -> list[Spot]:
    """Return the places for the name of a point: beside it, above or below its interval, or far off in a margin.

    Args:
        x: of the point.
        span: heights of the upper end of its interval, of the point, and of the lower end.
        name: what to write.
        margin: free of anything but names.
    """
    high, middle, low = span
    width, base = width_of(name), middle + DESCENT
    nudges = [6.0 * step for step in range(-8, 9)]
    places = [Spot(x + 10, base + nudge, width, 0.6 * abs(nudge)) for nudge in nudges]
    places += [Spot(x - 10 - width, base + nudge, width, 8 + 0.6 * abs(nudge)) for nudge in nudges]
    for shift in (-width / 2, -8.0, 8.0 - width):
        places += [Spot(x + shift, high - 8 - rise, width, 6 + 0.6 * rise) for rise in (0.0, 10.0, 20.0)]
        places += [Spot(x + shift, low + 6 + ASCENT + fall, width, 6 + 0.6 * fall) for fall in (0.0, 10.0, 20.0)]
    lines = range(int((margin.bottom - margin.top - ASCENT - DESCENT) / 4) + 1)
    heights = [margin.top + ASCENT + 4.0 * line for line in lines]
    return places + [Spot(margin.left, height, width, 25 + 0.2 * abs(height - base)) for height in heights]


def along(left: float, right: float, y: float, name: str) -> list[Spot]:
    """Return the places for the name of a horizontal line: on it or below it, best at its right end; else behind it."""
    width = SMALL_CHARACTER * len(name)
    starts = [right - width - 12.0 * step for step in range(int(max(right - width - left, 0) / 12) + 1)]
    places = [
        Spot(start, base, width, 0.02 * (right - width - start) + (0 if base < y else 1))
        for start in starts
        for base in (y - 5, y + ASCENT + 2)
    ]
    return [*places, Spot(right + 6, y + DESCENT, width, 8.0)]


def place(names: Sequence[Sequence[Spot]], obstacles: Sequence[Obstacle], frame: Box) -> list[Spot]:
    """Choose one place for each name: near, inside the frame, not on another name, on little else.

    Names choose in turn, and then again in the knowledge of all others; equal costs go to the first of the places.

    Args:
        names: the places for each.
        obstacles: what is drawn already.
        frame: outside of which nothing is seen.
    """
    alone = [[_cost(spot, obstacles, frame) for spot in spots] for spots in names]
    chosen: dict[int, Spot] = {}
    for _ in range(_TURNS):
        for index, spots in enumerate(names):
            others = [spot.box for other, spot in chosen.items() if other != index]
            costs = [
                own + _ON_A_NAME * sum(spot.box.meets(box) for box in others)
                for spot, own in zip(spots, alone[index], strict=True)
            ]
            chosen[index] = spots[costs.index(min(costs))]
    return [chosen[index] for index in range(len(names))]


def _cost(spot: Spot, obstacles: Sequence[Obstacle], frame: Box) -> float:
    box = spot.box
    inside = box.left >= frame.left and box.right <= frame.right and box.top >= frame.top and box.bottom <= frame.bottom
    covered = sum(obstacle.weight for obstacle in obstacles if box.meets(obstacle.box))
    return spot.distance + covered + (0 if inside else _OUTSIDE)
