"""What the files of the results must agree on: revisions, the images of a scenario, its data, victims and floors."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from leaderboard.reading import Problem

if TYPE_CHECKING:
    from leaderboard.store import Stored

_SAME = 0.05  # dB: by which the same floor on the same image may differ between two machines


def agree(stored: Sequence["Stored"]) -> list[Problem]:
    """What entries must agree on: revisions, the images of a scenario, its data, its victims and its floors."""
    problems = []
    revisions: dict[tuple[str, str, str, str], list[Stored]] = defaultdict(list)
    scenarios: dict[tuple[str, str, str], list[Stored]] = defaultdict(list)
    for each in stored:
        revisions[each.identity].append(each)
        scenarios[each.identity[:3]].append(each)
    for members in revisions.values():
        problems += _chain(sorted(members, key=lambda each: each.entry.revision))
    for members in scenarios.values():
        for each in members[1:]:
            problems += _as_the_first(members[0], each)
    names: dict[str, Path] = {}
    for each in stored:
        if (other := names.setdefault(str(each.file).casefold(), each.file)) != each.file:
            problems.append(Problem(each.file, "", f"differs from {other.name} in upper and lower case only"))
    return problems


def _chain(members: Sequence["Stored"]) -> list[Problem]:
    problems = []
    for before, each in zip([None, *members], members, strict=False):
        replaced = each.entry.supersedes
        if before is not None and before.entry.revision == each.entry.revision:
            problems.append(Problem(each.file, "revision", f"{each.entry.revision} is there twice"))
        elif replaced and (before is None or before.entry.revision != replaced.revision):
            problems.append(Problem(each.file, "supersedes", f"revision {replaced.revision} is not there; keep it"))
        elif replaced and before and before.sha256 != replaced.sha256:
            problems.append(Problem(each.file, "supersedes.sha256", f"{before.file.name} was edited since"))
    return problems


def _as_the_first(first: "Stored", other: "Stored") -> list[Problem]:
    """Compare an entry with the first one of its scenario."""
    one, two, problems = first.entry, other.entry, []
    problems += [
        Problem(other.file, field, f"differs from that of {first.file.name} in the same scenario")
        for field in ("data", "success_psnr")
        if getattr(one, field) != getattr(two, field)
    ]
    clients = [[run.configuration["client"] for run in entry.runs] for entry in (one, two)]
    if clients[0][0] != clients[1][0]:
        problems.append(
            Problem(other.file, "runs.0.configuration.client", f"differs from {first.file.name} in the same scenario")
        )
    if one.runs[0].victim != two.runs[0].victim:
        problems.append(
            Problem(other.file, "runs.0.victim", f"is not the victim of {first.file.name} in the same scenario")
        )
    places = {image.key: row for row, image in enumerate(one.images)}
    for row, image in enumerate(two.images):
        if image.key not in places:
            continue
        twin = one.images[places[image.key]]
        if (twin.image_id, twin.label) != (image.image_id, image.label):
            problems.append(Problem(other.file, f"images.{row}", f"is another image than in {first.file.name}"))
        for name in one.floors.keys() & two.floors.keys():
            values = one.floors[name].psnr[places[image.key]], two.floors[name].psnr[row]
            if "prior alone" not in name and not name.startswith("limit: ") and abs(values[0] - values[1]) > _SAME:
                problems.append(
                    Problem(other.file, f"floors.{name}.psnr.{row}", f"differs from that of {first.file.name}")
                )
    return problems[:20]
