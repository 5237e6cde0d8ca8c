"""The page: complete, offline, safe against hostile names, and there for runs that are unfinished or failed."""

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gibench.errors import RecordError
from gibench.records import RunFolder
from gibench.report import comparison_strip, write_report
from gibench.types import Record

MakeRecord = Callable[..., Record]
WriteRun = Callable[..., Path]
HOSTILE = '"><img src=x onerror=alert(1)><script>alert("it\'s & <b>")</script>'
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Tags with their attributes, the visible text, and a check that all tags are closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an opening tag."""
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag that closes itself."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Check that the innermost tag is closed."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Collect visible text."""
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        """The visible text with single spaces."""
        return " ".join(" ".join(self.words).split())

    def find(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every such tag."""
        return [attributes for name, attributes in self.tags if name == tag]


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def animate(folder: Path, frames: int, *, scenario: str = "lenet", attack: str = "ig") -> None:
    fade = torch.linspace(0, 1, frames)[:, None, None, None]
    private = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    tensors = {
        "frames": (1 - fade) * 0.5 + fade * private,
        "steps": torch.arange(frames) * 10,
        "objective": 1 / (1 + torch.arange(frames, dtype=torch.float32)),
        "private": private,
    }
    RunFolder(folder).save_tensors(tensors, "animation", scenario, attack)


@pytest.fixture
def complete(write_run: WriteRun, manifest: dict[str, Any]) -> Path:
    folder = write_run({"ig": 0.1, "dlg": 0.3, "floor: mean image": 0.4, "floor: nearest image (oracle)": 0.2})
    animate(folder, 12)
    RunFolder(folder).save_manifest(manifest)
    return folder


def test_a_finished_run_has_everything(complete: Path) -> None:
    path = write_report(complete)
    page = Page(path)
    assert path == complete / "report.html"
    for words in (
        "ig reaches", "above the best floor (mean image", "The server is honest but curious",
        "12 images, one per update",
        "nearest image (oracle)", "Image by image", "Risk", "Quality against cost", "One optimization, by ig",
        "gibench run first.yaml --size small", "0123abc", "2.15.0", "5f2c", "15826", "300 MiB",
        "the most of the whole process", "cpu, 32-true",
        "no VGG weights; set GIBENCH_WEIGHTS.",
    ):  # fmt: skip
        assert words in page.text.replace("\u00a0", " "), words
    assert "unfinished" not in page.text
    assert len(page.find("svg")) == 4


def test_the_page_asks_the_network_for_nothing(complete: Path) -> None:
    page = Page(write_report(complete))
    policy = [meta["content"] for meta in page.find("meta") if "http-equiv" in meta]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form", "use", "image")
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcset", "xlink:href")]
        assert (attributes.get("src") or "data:image/").startswith("data:image/")
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"url\(|@import|https?:", page.source)


def test_links_of_the_page_lead_somewhere(complete: Path) -> None:
    page = Page(write_report(complete))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {str(link["href"])[1:] for link in page.find("a")} <= set(ids)


def test_hostile_names_stay_text(write_run: WriteRun, manifest: dict[str, Any]) -> None:
    attacks = {HOSTILE: 0.1, f"floor: {HOSTILE}": 0.4}
    folder = write_run(attacks, scenario=HOSTILE, image_id=HOSTILE, status="refused", reason=HOSTILE)
    animate(folder, 3, scenario=HOSTILE, attack=HOSTILE)
    cell = manifest["cells"][0] | {
        "scenario": HOSTILE,
        "attack": HOSTILE,
        "device": HOSTILE,
        "victim": {HOSTILE: HOSTILE},
    }
    cell["threat_model"] = {HOSTILE: HOSTILE}
    cell["configuration"] = {HOSTILE: HOSTILE}
    facts = dict.fromkeys(("name", "size", "command", "commit", "platform", "started", "finished"), HOSTILE)
    RunFolder(folder).save_manifest(manifest | facts | {"cells": [cell], "metrics": {HOSTILE: HOSTILE}})
    page = Page(write_report(folder))
    assert not page.find("script")
    assert all(str(image["src"]).startswith("data:") for image in page.find("img"))
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) > 10


def test_unfinished_runs(write_run: WriteRun, manifest: dict[str, Any]) -> None:
    folder = write_run({"ig": 0.1}, images=1)
    assert "unfinished" in Page(write_report(folder)).text  # killed before the first manifest
    RunFolder(folder).save_manifest(manifest | {"finished": None, "cells": []})
    text = Page(write_report(folder)).text
    assert "unfinished" in text
    assert "no floor is recorded yet" in text


def test_a_run_without_records(tmp_path: Path, manifest: dict[str, Any]) -> None:
    RunFolder(tmp_path).save_manifest(manifest | {"finished": None})
    assert "Nothing is recorded yet." in Page(write_report(tmp_path)).text


def test_floors_alone(write_run: WriteRun) -> None:
    text = Page(write_report(write_run({"floor: mean image": 0.3}))).text
    assert "No attack is recorded yet." in text
    assert "Risk" not in text


def test_a_precision_that_was_not_tested_is_named_beside_its_attack(write_run: WriteRun) -> None:
    text = Page(write_report(write_run({"ig": 0.1}, precision="bf16-mixed", parity="untested"))).text
    assert "ig bf16-mixed: untested" in text
    assert "Its numbers do not stand for those of 32-true." in text


def test_a_tested_precision_is_not_marked(write_run: WriteRun) -> None:
    text = Page(write_report(write_run({"ig": 0.1}, precision="bf16-mixed", parity="within"))).text
    assert "bf16-mixed:" not in text
    assert "do not stand for those of 32-true" not in text


def test_only_failures_without_lpips(write_run: WriteRun, record: MakeRecord) -> None:
    folder = write_run(
        {"ig": 0.4}, status="diverged", lpips_alex=None, ssim=None, objective=None, label_inferred=None, pictures=True
    )
    RunFolder(folder).records.append(
        [record("floor: mean image", update, 0, 9.0, lpips_alex=None) for update in range(12)]
    )
    page = Page(write_report(folder))
    assert "LPIPS Alex" not in page.text
    assert "diverged" in page.text
    assert "12 failed reconstructions" in page.text
    assert len(page.find("img")) == 10  # the private images; a failure has no picture


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"records\.jsonl"):
        write_report(tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


def test_a_damaged_manifest_is_named(complete: Path) -> None:
    (complete / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(RecordError, match=r"manifest\.json is damaged"):
        write_report(complete)


def test_pictures_are_the_stored_ones_by_the_stated_rule(complete: Path) -> None:
    page = Page(write_report(complete))
    pictures = [image for image in page.find("img") if str(image["src"]).startswith("data:image/png")]
    assert len(pictures) == 30  # private, ig, dlg
    scores = [json.loads(line) for line in (complete / "records.jsonl").read_text().splitlines()]
    ranked = sorted((line for line in scores if line["attack"] == "ig"), key=lambda line: -line["psnr"])
    chosen = [line["image_id"] for line in ranked[:2] + ranked[5:7] + ranked[-2:]]
    rest = sorted(line["image_id"] for line in ranked if line["image_id"] not in chosen)[:4]
    assert [str(image["alt"]).removeprefix("private image ") for image in pictures[:10]] == chosen + rest
    best = RunFolder(complete).load_tensors("reconstructions", "lenet", "ig", ranked[0]["update_id"])
    shown = np.asarray(decoded(str(pictures[10]["src"])))
    assert np.array_equal(shown, (255 * best["images"][0]).round().byte().permute(1, 2, 0).numpy())


def test_a_suite_of_100_images_stays_below_two_megabytes(tmp_path: Path, record: MakeRecord) -> None:
    folder = RunFolder(tmp_path)
    noise = torch.rand(100, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))  # does not compress
    for scenario in range(3):
        for attack in range(4):
            names = {"scenario": f"scenario {scenario}", "attack": f"attack {attack}"}
            folder.records.append([record(update=update, psnr=10 + update / 10, **names) for update in range(100)])
            for update in range(0, 100, 8):  # more than the ten that the page shows
                tensors = {"images": noise[update], "private": noise[99 - update]}
                folder.save_tensors(tensors, "reconstructions", *names.values(), f"u{update:03d}")
        animation = {
            "frames": noise[:25, 0],
            "steps": torch.arange(25),
            "objective": torch.rand(25),
            "private": noise[0, 0].clone(),
        }
        folder.save_tensors(animation, "animation", f"scenario {scenario}", "attack 0")
    assert write_report(tmp_path).stat().st_size < 2_000_000


def test_the_strip_shows_the_first_images_by_id(complete: Path, tmp_path: Path) -> None:
    path = comparison_strip(complete, tmp_path / "strip.png", images=3)
    strip = Image.open(path).convert("RGB")
    private = RunFolder(complete).load_tensors("reconstructions", "lenet", "ig", "u000")["private"][0]
    large = Image.fromarray((255 * private).round().byte().permute(1, 2, 0).numpy()).resize(
        (96, 96), Image.Resampling.NEAREST
    )
    left = strip.width - 16 - 3 * 96 - 2 * 8
    assert strip.height == 2 * 16 + 3 * 96 + 2 * 8
    assert np.array_equal(np.asarray(strip)[16:112, left : left + 96], np.asarray(large))


def test_the_strip_of_another_scenario_or_without_pictures(complete: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="'mlp'"):
        comparison_strip(complete, tmp_path / "strip.png", scenario="mlp")
    with pytest.raises(RecordError, match="any scenario"):
        comparison_strip(tmp_path / "nothing", tmp_path / "strip.png")
