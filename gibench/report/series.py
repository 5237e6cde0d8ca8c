"""Series: scenarios that differ in one variable, put side by side on top of the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from gibench.metrics.intervals import Interval
from gibench.records import folder_name
from gibench.report.drawing import markup, standalone
from gibench.report.figures import best_floor
from gibench.report.gallery import Album, Gallery, hang_medians
from gibench.report.series_chart import Course, draw_series
from gibench.report.summary import Group, Row
from gibench.storage import write_atomically

_LABELS = {"step": "training step of the victim"}
_FLOOR = "best floor"


@dataclass(frozen=True)
class Stage:
    """One value of the variable: the rows and records of its scenario, and the victim's accuracy where recorded."""

    value: float
    scenario: str
    rows: Sequence[Row]
    attacks: dict[str, Group]
    accuracy: float | None

    def reached(self, attack: str) -> Interval | str | None:
        """Return the PSNR of an attack, why it answers no images, or None where it is not recorded."""
        for row in self.rows:
            if row.attack == attack:
                return row.psnr if row.has_images else row.verdict
        return None


@dataclass(frozen=True)
class Series:
    """What the page shows of a series. lines: name, color and one entry per stage, the best floor last."""

    name: str
    label: str
    variable: str
    stages: list[Stage]
    figure: Markup
    lines: list[tuple[str, str, list[Interval | str | None]]]
    gallery: Gallery | None

    @property
    def has_accuracy(self) -> bool:
        """Whether the accuracy is recorded at any value."""
        return any(stage.accuracy is not None for stage in self.stages)


def collect(
    run_folder: Path,
    name: str,
    stages: Sequence[Stage],
    colors: Mapping[str, str],
    *,
    variable: str,
    success_psnr: float,
) -> Series | None:
    """Draw a series from the stages that are recorded, and write its figure as `series-NAME.svg` into the run folder.

    Returns:
        None where no attack is recorded that did not refuse.

    Raises:
        StorageError: when the figure cannot be written.
    """
    stages = sorted(stages, key=lambda stage: stage.value)
    names = list(dict.fromkeys(row.attack for stage in stages for row in stage.rows if row.kind == "attack"))
    reached = {attack: [stage.reached(attack) for stage in stages] for attack in sorted(names)}
    floors = [best_floor(stage.rows) for stage in stages]
    floor = [row.psnr if row else None for row in floors]
    courses = [Course(attack, colors[attack], _points(stages, found)) for attack, found in reached.items()]
    courses = [course for course in courses if course.points]
    if not courses:
        return None
    label = _LABELS.get(variable, variable.replace("_", " "))
    drawing = draw_series(
        courses,
        Course(_FLOOR, "floor", _points(stages, floor)),
        [(stage.value, stage.accuracy) for stage in stages if stage.accuracy is not None],
        label=label,
        logarithmic=_is_logarithmic(variable, [stage.value for stage in stages]),
    )
    write_atomically(standalone(drawing), run_folder / f"series-{folder_name(name)}.svg")
    albums = [
        (f"{variable} {stage.value:,g}", Album(run_folder, stage.scenario, stage.attacks, stage.rows))
        for stage in stages
    ]
    return Series(
        name=name,
        label=label,
        variable=variable,
        stages=stages,
        figure=markup(drawing),
        lines=[
            *((attack, colors[attack], found) for attack, found in reached.items()),
            (_FLOOR, "floor", list(floor)),
        ],
        gallery=hang_medians(albums, success_psnr=success_psnr),
    )


def _points(stages: Sequence[Stage], found: Sequence[Interval | str | None]) -> list[tuple[float, Interval]]:
    return [
        (stage.value, interval) for stage, interval in zip(stages, found, strict=True) if isinstance(interval, Interval)
    ]


def _is_logarithmic(variable: str, values: Sequence[float]) -> bool:
    """Steps always; any other variable where its positive values span more than a factor of ten."""
    positive = [value for value in values if value > 0]
    wide = bool(positive) and max(positive) > 10 * min(positive)
    return min(values) >= 0 and (variable == "step" or wide)
