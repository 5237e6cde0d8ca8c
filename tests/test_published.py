"""The README's table is what the suite wrote, to the digit."""

import csv
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from gibench.precision import panel
from gibench.report.correlation import rank_correlation
from gibench.report.identifiability import SHOWN

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "docs" / "results"
VERDICTS = {"no leak measured": "no leak measured", "leak in part": "in part", "leak": "yes", "refused": "refused"}


def markdown(path: Path) -> list[str]:
    """What the README shows of `summary.csv`: attacks and controls, and the best floor of each scenario."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    lines = []
    for scenario in dict.fromkeys(row["scenario"] for row in rows):
        members = [row for row in rows if row["scenario"] == scenario]
        floors = [row for row in members if row["kind"] == "floor" and "prior alone" not in row["attack"]]
        attacks = sorted(
            (row for row in members if row["kind"] in ("attack", "control")), key=lambda row: -float(row["psnr"])
        )
        lines += [line(row) for row in [*attacks, max(floors, key=lambda row: float(row["psnr"]))]]
    return lines


def line(row: dict[str, str]) -> str:
    low, mean, high = (float(row[name]) for name in ("psnr_low", "psnr", "psnr_high"))
    labels = f"{100 * float(row['label_accuracy']):.0f} %" if row["label_accuracy"] else ""
    cells = (
        row["scenario"],
        row["attack"],
        row["images"],
        f"{mean:.1f} [{low:.1f}, {high:.1f}]",
        f"{float(row['psnr_median']):.1f}",
        f"{100 * float(row['success']):.0f} %",
        labels,
        VERDICTS.get(row["verdict"], ""),
    )
    return "| " + " | ".join(cells) + " |"


def test_the_readme_shows_what_the_suite_wrote() -> None:
    readme = (REPOSITORY / "README.md").read_text().splitlines()
    for expected in markdown(RESULTS / "first-small.csv"):
        assert expected in readme


@pytest.mark.parametrize("name", ["first-small", "bayes_optimal-small", "broken_defenses-small"])
def test_the_published_run_says_how_it_was_made(name: str) -> None:
    manifest = json.loads((RESULTS / f"{name}.json").read_text())
    assert manifest["command"] == COMMANDS[name]
    assert manifest["finished"]
    assert manifest["commit"]
    assert "dirty" not in manifest["commit"]
    assert all(cell["victim"]["weights_sha256"] and cell["data"]["split_hashes"] for cell in manifest["cells"])


def rows_of(name: str) -> list[dict[str, str]]:
    """The rows of a published CSV file."""
    with (RESULTS / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def interval(row: dict[str, str], name: str) -> str:
    """Mean and 95 % interval, as the tables show them."""
    mean, low, high = (float(row[key]) for key in (name, *BOUNDS[name]))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]".replace("-", "−")


BOUNDS = {"psnr": ("psnr_low", "psnr_high"), "difference": ("low", "high")}


def bayes_table() -> list[str]:
    """Each scenario of the suite: every attack's mean, and what the Bayes-optimal one has over each other."""
    names = ("bayes", "bayes-mixture", "l2", "l1", "cosine")
    rows = {(row["scenario"], row["attack"]): row for row in rows_of("bayes_optimal-small")}
    gains = {(row["scenario"], row["other"]): row for row in rows_of("bayes_optimal-small-paired")}
    lines = []
    for scenario in dict.fromkeys(scenario for scenario, _ in rows):
        means = [interval(rows[scenario, name], "psnr") if (scenario, name) in rows else "" for name in names]
        over = [interval(gains[scenario, name], "difference") for name in ("l2", "l1", "cosine")]
        lines.append("| " + " | ".join((scenario, *means, *over)) + " |")
    return lines


def broken_table(series: str) -> list[str]:
    """One line for each training step: the victim's accuracy, and the mean of each attack."""
    manifest = json.loads((RESULTS / "broken_defenses-small.json").read_text())
    rows = {(row["scenario"], row["attack"]): row for row in rows_of("broken_defenses-small")}
    accuracy = {cell["scenario"]: cell["victim"]["test_accuracy"] for cell in manifest["cells"]}
    lines = []
    for scenario, step in manifest["series"][series]["scenarios"].items():
        cells = [interval(row, "psnr") for (of, _), row in rows.items() if of == scenario and row["kind"] == "attack"]
        lines.append(f"| {step} | {100 * accuracy[scenario]:.0f} % | " + " | ".join(cells) + " |")
    return lines


def test_the_documentation_shows_both_experiments() -> None:
    text = (REPOSITORY / "docs" / "defenses.md").read_text().splitlines()
    for expected in [*bayes_table(), *(row for name in SERIES for row in broken_table(name))]:
        assert expected in text
    readme = (REPOSITORY / "README.md").read_text().splitlines()
    assert all(row in readme for row in bayes_table())


SERIES = ("soteria", "ats", "ats-transformed", "precode")
COMMANDS = {
    "first-small": "gibench run configs/suites/first.yaml --size small",
    "bayes_optimal-small": "gibench run configs/suites/bayes_optimal.yaml --size small",
    "broken_defenses-small": "gibench run configs/suites/broken_defenses.yaml --size small",
}


EXPERIMENTS = {
    "mlp_single": "",
    "lenet_l2_cosine": "",
    "lenet_batches": "",
    "tv_sweep": "",
    "repeated_labels": " --precision 64-true",
    "label_study": "",
    "r_gap": " --precision 64-true",
    "second_order": " --precision 64-true",
    "second_order_pairs": " --precision 64-true",
    "learned_inverters": "",
    "generative": "",
    "out_of_distribution": "",
    "moving_weights": "",
    "variable_batch": "",
    "architectures": "",
    "hybrid": "",
    "defended_inverters": "",
    "out_of_distribution_inverters": "",
}
ELSEWHERE = {
    "second_order": "second_order",
    "second_order_pairs": "second_order",
    "learned_inverters": "inverters",
    "generative": "generators",
    "out_of_distribution": "generators",
    "moving_weights": "inverters",
    "variable_batch": "inverters",
    "architectures": "inverters",
    "hybrid": "inverters",
    "defended_inverters": "inverters",
    "out_of_distribution_inverters": "inverters",
}
"""Where a table is that is not in experiments.md."""

STOPPED = {"repeated_labels", "second_order", "second_order_pairs"}  # before its last cells; the documentation says so


def published() -> list[str]:
    """The experiments whose results are in the documentation."""
    return [name for name in EXPERIMENTS if (RESULTS / f"{name}-small.csv").exists()]


def experiment_table(name: str) -> list[str]:
    """One line for each attack of a suite, for the best floor of each of its scenarios, and for its limits."""
    lines = []
    rows = rows_of(f"{name}-small")
    for scenario in dict.fromkeys(row["scenario"] for row in rows):
        members = [row for row in rows if row["scenario"] == scenario]
        attacks = [row for row in members if row["kind"] == "attack"]
        floors = [row for row in members if row["kind"] == "floor"]
        attacks.sort(key=lambda row: -float(row["psnr"]))
        limits = [row for row in members if row["attack"].startswith("limit:")]
        for row in [*attacks, max(floors, key=lambda row: float(row["psnr"])), *limits]:
            looks = [f"{100 * float(row[key]):.0f} %" if row[key] else "" for key in ("bad_pixels", "mixtures")]
            cells = (
                scenario,
                row["attack"],
                row["images"],
                interval(row, "psnr"),
                f"{float(row['psnr_median']):.1f}",
                f"{100 * float(row['exact']):.0f} %" if row["kind"] == "attack" else "",
                looks[0],
                f"{float(row['tv_ratio']):.2f}" if row["tv_ratio"] else "",
                looks[1],
                VERDICTS.get(row["verdict"], row["verdict"]),
            )
            lines.append("| " + " | ".join(cells) + " |")
    return lines


@pytest.mark.parametrize("name", published())
def test_the_documentation_shows_the_experiments(name: str) -> None:
    manifest = json.loads((RESULTS / f"{name}-small.json").read_text())
    assert manifest["command"] == f"gibench run configs/suites/{name}.yaml --size small{EXPERIMENTS[name]}"
    assert bool(manifest["finished"]) == (name not in STOPPED)
    assert "dirty" not in manifest["commit"]
    text = (REPOSITORY / "docs" / f"{ELSEWHERE.get(name, 'experiments')}.md").read_text().splitlines()
    for expected in experiment_table(name):
        assert expected in text


def priors_table() -> list[str]:
    """What the README shows of the generative priors: a line for each attack, a column for each batch size."""
    rows = {(row["scenario"], row["attack"]): row for row in rows_of("generative-small")}
    names = ("gifd", "gias", "latent", "tv", "ig", "floor: class mean", "limit: generator (oracle)")
    return [
        "| " + " | ".join((name, *(interval(rows[f"lenet-b{size}", name], "psnr") for size in (1, 2, 4)))) + " |"
        for name in names
    ]


def test_the_readme_shows_the_generative_priors() -> None:
    readme = (REPOSITORY / "README.md").read_text().splitlines()
    assert all(row in readme for row in priors_table())


def families_table() -> list[str]:
    """In each scenario, each family's mean at each of its budgets; of the inverter, which has none, at the first."""
    rows = {(row["scenario"], row["attack"]): row for row in rows_of("prior_families-small")}
    families = json.loads((RESULTS / "prior_families-small.json").read_text())["families"]
    lines = []
    for scenario in dict.fromkeys(scenario for scenario, _ in rows):
        for family, attacks in families.items():
            cells = [interval(rows[scenario, name], "psnr") for name in attacks if (scenario, name) in rows]
            if cells:
                lines.append("| " + " | ".join((scenario, family, *cells, *[""] * (3 - len(cells)))) + " |")
    return lines


@pytest.mark.skipif(not (RESULTS / "prior_families-small.csv").exists(), reason="the suite is not published")
def test_the_documentation_shows_the_families() -> None:
    manifest = json.loads((RESULTS / "prior_families-small.json").read_text())
    assert manifest["command"] == "gibench run configs/suites/prior_families.yaml --size small"
    assert "dirty" not in manifest["commit"]
    text = (REPOSITORY / "docs" / "generators.md").read_text().splitlines()
    for expected in families_table():
        assert expected in text


def limit_table() -> list[str]:
    """At each noise the bound, and each attack's mean squared error over it, means over the updates."""
    rows = rows_of("noise_limit-small-limit")
    attacks = ("second-order", "second-order-gaussian", "second-order-tv", "ig")
    lines = []
    for sigma in dict.fromkeys(row["sigma"] for row in rows):
        members = [row for row in rows if row["sigma"] == sigma]
        own = {name: [row for row in members if row["attack"] == name] for name in attacks}
        bounds = [statistics.fmean(float(row[key]) for row in own["ig"]) for key in ("least_mse_unbiased", "least_mse")]
        ratios = [statistics.fmean(float(row["mse"]) for row in own[name]) / bounds[1] for name in attacks]
        cells = (f"{float(sigma):.0e}", *(f"{bound:.1e}" for bound in bounds), *(f"{ratio:.2g}" for ratio in ratios))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def test_the_documentation_shows_the_limit() -> None:
    manifest = json.loads((RESULTS / "noise_limit-small.json").read_text())
    assert manifest["command"] == "gibench run configs/suites/noise_limit.yaml --size small --precision 64-true"
    assert manifest["finished"]
    assert "dirty" not in manifest["commit"]
    text = (REPOSITORY / "docs" / "second_order.md").read_text().splitlines()
    assert len(limit_table()) == 5
    for expected in limit_table():
        assert expected in text


def label_table() -> list[str]:
    """Multiset accuracy of some rules, by victim and batch."""
    rows = {(row["scenario"], row["attack"]): row for row in rows_of("labels-small")}
    lines = []
    for scenario in dict.fromkeys(scenario for scenario, _ in rows):
        cells = [share(rows[scenario, rule]) if (scenario, rule) in rows else "" for rule in LABEL_RULES]
        updates = rows[scenario, LABEL_RULES[0]]["updates"]
        lines.append("| " + " | ".join((scenario, updates, *cells)) + " |")
    return lines


LABEL_RULES = ("ilrg", "ilrg-shrunk", "llg-plus", "llg", "bias-corrected", "grad-inversion", "random")


def share(row: dict[str, str]) -> str:
    """Labels that are right, in percent, with the interval; nothing where the rule refused."""
    if not row["label_accuracy"]:
        return "refused"
    mean, low, high = (100 * float(row[f"label_accuracy{end}"]) for end in ("", "_low", "_high"))
    return f"{mean:.0f} [{low:.0f}, {high:.0f}]"


def test_the_documentation_shows_the_label_rules() -> None:
    manifest = json.loads((RESULTS / "labels-small.json").read_text())
    assert manifest["command"] == "gibench run configs/suites/labels.yaml --size small"
    assert manifest["finished"]
    assert "dirty" not in manifest["commit"]
    text = (REPOSITORY / "docs" / "labels.md").read_text().splitlines()
    for expected in label_table():
        assert expected in text


def foretold() -> list[dict[str, str]]:
    """The diagnosed updates of the identifiability suite, with what was reached."""
    return rows_of("identifiability-small-foretold")


def identifiability_table() -> list[str]:
    """One line for each scenario, at the noise that the page shows."""
    lines = []
    for scenario in dict.fromkeys(row["scenario"] for row in foretold()):
        rows = [row for row in foretold() if row["scenario"] == scenario and float(row["noise"]) == SHOWN]
        once = [row for row in rows if row["attack"] == rows[0]["attack"]]
        nulls = sorted({int(row["without_trace"]) for row in once})
        reached = [
            f"{statistics.fmean(float(row['psnr']) for row in rows if row['attack'] == attack):.1f}"
            for attack in ("ig", "dlg")
        ]
        cells = (
            scenario,
            str(len(once)),
            f"{int(once[0]['directions']):,}",
            f"{nulls[0]:,}" if len(nulls) == 1 else f"{nulls[0]:,} to {nulls[-1]:,}",
            f"{statistics.median(float(row['condition']) for row in once):.1e}",
            f"{statistics.median(float(row['least_mse_psnr']) for row in once):.1f}",
            *reached,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def correlation_table() -> list[str]:
    """Rank correlations of the predictors with the reached PSNR, pooled and within scenarios."""
    predictors = {
        "share of directions that leave a trace": lambda row: 1 - int(row["without_trace"]) / int(row["directions"]),
        "one over the condition": lambda row: 1 / float(row["condition"]),
        f"PSNR of the least MSE at noise {SHOWN:g}": lambda row: float(row["least_mse_psnr"]),
    }
    lines = []
    for name, predictor in predictors.items():
        cells = [name]
        for attack in ("ig", "dlg"):
            rows = [row for row in foretold() if row["attack"] == attack and float(row["noise"]) == SHOWN]
            columns = [predictor(row) for row in rows], [float(row["psnr"]) for row in rows]
            updates, scenarios = ([row[key] for row in rows] for key in ("update", "scenario"))
            for found in (
                rank_correlation(*columns, updates),
                rank_correlation(*columns, updates, within=scenarios),
            ):
                if found.value is None or found.low is None or found.high is None:
                    cells.append("")
                else:
                    cells.append(f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]".replace("-", "−"))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def test_the_documentation_shows_what_the_diagnosis_foretold() -> None:
    manifest = json.loads((RESULTS / "identifiability-small.json").read_text())
    assert manifest["command"] == "gibench run configs/suites/identifiability.yaml --size small"
    assert manifest["finished"]
    assert "dirty" not in manifest["commit"]
    text = (REPOSITORY / "docs" / "identifiability.md").read_text().splitlines()
    for expected in [*identifiability_table(), *correlation_table()]:
        assert expected in text


def speed(case: str, entry: dict[str, Any]) -> str:
    """What the README shows of one entry of a benchmark."""
    cells = (
        case.split(",")[0],
        str(entry["batch_size"]),
        f"{entry['rows']} restarts" if entry["restarts"] > 1 else f"{entry['rows']} updates",
        f"{entry['rate']:,.0f}" if entry["rate"] >= 100 else f"{entry['rate']:.1f}",
        f"{entry['peer_rate']:,.0f}" if entry["peer_rate"] >= 100 else f"{entry['peer_rate']:.1f}",
        f"{entry['ratio']:.1f}",
        entry["backend"],
        f"{entry['gflops']:,.0f}",
        f"{entry['peak_memory_gib']:.1f}",
    )
    return "| " + " | ".join(cells) + " |"


@pytest.mark.parametrize("name", ["engine", "engine-compiled"])
def test_the_readme_shows_what_the_benchmarks_wrote(name: str) -> None:
    readme = (REPOSITORY / "README.md").read_text().splitlines()
    result = json.loads((RESULTS / f"{name}.json").read_text())
    for case, entry in result["cases"].items():
        assert speed(case, entry) in readme


def test_the_documentation_shows_the_panel() -> None:
    text = (REPOSITORY / "docs" / "engine.md").read_text()
    assert panel()
    for entry in panel():
        numbers = f"{entry.reference.psnr:.1f} | {entry.other.psnr:.1f} | {entry.difference:.1f} "
        interval = f"[{entry.low:.1f}, {entry.high:.1f}] | {entry.verdict} |"
        assert numbers + interval in text


def test_the_documentation_says_how_often_the_set_inverter_names_the_number() -> None:
    rows = {row["scenario"]: row for row in rows_of("variable_batch-small") if row["attack"] == "set"}
    wrong = [
        int(row["remarks"].removesuffix(": names .. images instead of ..").split(" of ")[0]) for row in rows.values()
    ]
    named = [1 - count / int(row["images"]) for count, row in zip(wrong, rows.values(), strict=True)]
    text = " ".join((REPOSITORY / "docs" / "inverters.md").read_text().split())
    one, two, four, eight = (f"{100 * share:.0f} %" for share in named)
    assert f"{one} of updates of one image, {two} of two, {four} of four and {eight} of eight" in text
    assert f"{100 * named[-1]:.1f} %" in text
