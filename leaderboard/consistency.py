"""What the parts of an entry must say of each other."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leaderboard.schema import Entry

ROUNDING = 0.02
"""dB: between a PSNR and its MSE, or the same floor, both rounded."""


def images(entry: "Entry") -> list[str]:
    """What is wrong with the images: twice the same, a run that is not there, other images under other victims."""
    problems: list[str] = []
    seen: set[tuple[int, str, int]] = set()
    named: dict[tuple[str, int], tuple[str, int]] = {}
    sizes: dict[tuple[int, str], int] = {}
    for row, image in enumerate(entry.images):
        where = f"images.{row}"
        if image.key in seen:
            problems.append(f"{where}: is there twice")
        seen.add(image.key)
        if image.run >= len(entry.runs):
            problems.append(f"{where}.run: there are {len(entry.runs)} runs")
        if max(image.label, image.label_inferred or 0) >= entry.runs[0].victim.num_classes:
            problems.append(f"{where}.label: the victim has {entry.runs[0].victim.num_classes} classes")
        what = (image.image_id, image.label)
        if named.setdefault((image.update_id, image.position), what) != what:
            problems.append(f"{where}.image_id: is another image than in another run")
        sizes[image.run, image.update_id] = sizes.get((image.run, image.update_id), 0) + 1
    whole = max(sizes.values())  # under secure aggregation more than data.batch_size
    if whole % entry.data.batch_size or max(image.position for image in entry.images) >= whole:
        problems.append(f"images: batches of {entry.data.batch_size} cannot have {whole} images")
    problems += [
        f"images: update {update} of run {run} has {size} images of {whole}"
        for (run, update), size in sizes.items()
        if size != whole
    ]
    if len({image.image_id for image in entry.images}) != len(named):
        problems.append("images: an image stands behind two updates")
    if {run for run, _ in sizes} != set(range(len(entry.runs))):
        problems.append("runs: a run has no images")
    return problems


def yardsticks(entry: "Entry") -> list[str]:
    """What is wrong with floors and controls, and with failed images: they score as the mean image (rule R7)."""
    problems = []
    for kind, yardsticks in (("floors", entry.floors), ("controls", entry.controls)):
        for name, values in yardsticks.items():
            if not len(values.psnr) == len(values.mse) == len(entry.images):
                problems.append(f"{kind}.{name}: has values of other than the {len(entry.images)} images")
    if "mean image" not in entry.floors:
        return [*problems, "floors: the mean image is missing (rule R5)"]
    if problems:
        return problems
    for row, (image, floor) in enumerate(zip(entry.images, entry.floors["mean image"].psnr, strict=True)):
        if image.status in ("diverged", "refused") and abs(image.psnr - floor) > ROUNDING:
            problems.append(f"images.{row}.psnr: {image.status}, so it scores as the mean image, {floor:g} dB")
    return problems


def runs(entry: "Entry") -> list[str]:
    """What is wrong with the runs: they differ in nothing but the victim's seed."""
    problems = []
    for row, run in enumerate(entry.runs):
        if run.victim.num_classes < entry.data.num_classes:
            problems.append(f"runs.{row}.victim.num_classes: the data has {entry.data.num_classes}")
        if run.configuration["attack"] != entry.runs[0].configuration["attack"]:
            problems.append(f"runs.{row}.configuration.attack: is another one than in the first run")
        stated = run.configuration["client"]
        flags = stated.get("init_args", {}).get("threat_model") if isinstance(stated, dict) else None
        if isinstance(flags, dict) and flags != {name: entry.threat_model.model_dump()[name] for name in flags}:
            problems.append(f"runs.{row}.configuration.client: states another threat model")
    if len({run.victim.weights_sha256 for run in entry.runs}) != len(entry.runs):
        problems.append("runs: two of them attack the same victim")
    if len({run.victim.architecture for run in entry.runs}) != 1:
        problems.append("runs: they attack victims of different architectures")
    return problems


def pictures(entry: "Entry") -> list[str]:
    """What is wrong with what an entry says of its pictures."""
    problems = [
        f"pictures.{row}.image: there are {len(entry.images)} images"
        for row, picture in enumerate(entry.pictures)
        if picture.image >= len(entry.images)
    ]
    if len({picture.image for picture in entry.pictures}) != len(entry.pictures):
        problems.append("pictures: one image has two")
    return problems
