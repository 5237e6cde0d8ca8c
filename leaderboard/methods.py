"""What the page says of the attacks that gibench ships: title, prior family and citation, by class path.

Other attacks are described by whoever submits them, in a file (`gibench leaderboard add RUN --about FILE`).
"""

from collections.abc import Mapping
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from pydantic import ValidationError

from gibench.attacks import Attack
from gibench.errors import ConfigurationError, GibenchError
from gibench.runs.plan import instantiate
from leaderboard.schema import Citation, Family, Method

_BALUNOVIC = Citation(
    title="Bayesian Framework for Gradient Leakage",
    authors=("Mislav Balunović", "Dimitar I. Dimitrov", "Robin Staab", "Martin Vechev"),
    year=2022,
    venue="ICLR",
)
_GEIPING = Citation(
    title="Inverting Gradients: How easy is it to break privacy in federated learning?",
    authors=("Jonas Geiping", "Hartmut Bauermeister", "Hannah Dröge", "Michael Moeller"),
    year=2020,
    venue="NeurIPS",
)
_YIN = Citation(
    title="See through Gradients: Image Batch Recovery via GradInversion",
    authors=("Hongxu Yin", "Arun Mallya", "Arash Vahdat", "Jose M. Alvarez", "Jan Kautz", "Pavlo Molchanov"),
    year=2021,
    venue="CVPR",
)
_WAINAKH = Citation(
    title="User-Level Label Leakage from Gradients in Federated Learning",
    authors=(
        "Aidmar Wainakh",
        "Fabrizio Ventola",
        "Till Müßig",
        "Jens Keim",
        "Carlos Garcia Cordero",
        "Ephraim Zimmer",
        "Tim Grube",
        "Kristian Kersting",
        "Max Mühlhäuser",
    ),
    year=2022,
    venue="PoPETs",
)
_ZHAO = Citation(
    title="iDLG: Improved Deep Leakage from Gradients",
    authors=("Bo Zhao", "Konda Reddy Mopuri", "Hakan Bilen"),
    year=2020,
    venue="arXiv:2001.02610",
)
_MA = Citation(
    title="Instance-wise Batch Label Restoration via Gradients in Federated Learning",
    authors=("Kailang Ma", "Yu Sun", "Jian Cui", "Dawei Li", "Zhenyu Guan", "Jianwei Liu"),
    year=2023,
    venue="ICLR",
)

KNOWN: dict[str, tuple[str, Citation | None]] = {
    "gibench.attacks.BiasAttack": (
        "Bias attack",
        Citation(
            title="Privacy-Preserving Deep Learning via Additively Homomorphic Encryption",
            authors=("Le Trieu Phong", "Yoshinori Aono", "Takuya Hayashi", "Lihua Wang", "Shiho Moriai"),
            year=2018,
            venue="IEEE TIFS",
        ),
    ),
    "gibench.attacks.RGAP": (
        "R-GAP",
        Citation(
            title="R-GAP: Recursive Gradient Attack on Privacy",
            authors=("Junyi Zhu", "Matthew Blaschko"),
            year=2021,
            venue="ICLR",
        ),
    ),
    "gibench.attacks.SPEAR": (
        "SPEAR",
        Citation(
            title="SPEAR: Exact Gradient Inversion of Batches in Federated Learning",
            authors=("Dimitar I. Dimitrov", "Maximilian Baader", "Mark Niklas Müller", "Martin Vechev"),
            year=2024,
            venue="NeurIPS",
        ),
    ),
    "gibench.attacks.dlg": (
        "DLG",
        Citation(
            title="Deep Leakage from Gradients",
            authors=("Ligeng Zhu", "Zhijian Liu", "Song Han"),
            year=2019,
            venue="NeurIPS",
        ),
    ),
    "gibench.attacks.idlg": ("iDLG", _ZHAO),
    "gibench.attacks.inverting_gradients": ("Inverting Gradients", _GEIPING),
    "gibench.attacks.inverting_gradients_modern": ("Inverting Gradients (modern)", _GEIPING),
    "gibench.attacks.inverting_gradients_legacy": ("Inverting Gradients (legacy)", _GEIPING),
    "gibench.attacks.gradinversion": ("GradInversion", _YIN),
    "gibench.attacks.bayes_optimal": ("Bayes-optimal adversary", _BALUNOVIC),
    "gibench.attacks.UndoTransformation": ("ATS undone", _BALUNOVIC),
    "gibench.attacks.second_order": ("Second-order matching", None),
    "gibench.attacks.Continuation": ("Softened victims", None),
    "gibench.attacks.GradientMatching": ("Gradient matching", None),
    "gibench.attacks.gias": (
        "GIAS",
        Citation(
            title="Gradient Inversion with Generative Image Prior",
            authors=("Jinwoo Jeon", "Jaechang Kim", "Kangwook Lee", "Sewoong Oh", "Jungseul Ok"),
            year=2021,
            venue="NeurIPS",
        ),
    ),
    "gibench.attacks.gifd": (
        "GIFD",
        Citation(
            title="GIFD: A Generative Gradient Inversion Method with Feature Domain Optimization",
            authors=("Hao Fang", "Bin Chen", "Xuan Wang", "Zhi Wang", "Shu-Tao Xia"),
            year=2023,
            venue="ICCV",
        ),
    ),
    "gibench.attacks.ggl": (
        "GGL",
        Citation(
            title="Auditing Privacy Defenses in Federated Learning via Generative Gradient Leakage",
            authors=("Zhuohang Li", "Jiaxin Zhang", "Luyang Liu", "Jian Liu"),
            year=2022,
            venue="CVPR",
        ),
    ),
    "inverters.LearningToInvert": (
        "Learning to Invert",
        Citation(
            title="Learning To Invert: Simple Adaptive Attacks for Gradient Inversion in Federated Learning",
            authors=("Ruihan Wu", "Xiangyu Chen", "Chuan Guo", "Kilian Q. Weinberger"),
            year=2023,
            venue="UAI",
        ),
    ),
    "gibench.labels.ILRG": ("iLRG (labels)", _MA),
    "gibench.labels.LLG": ("LLG (labels)", _WAINAKH),
    "gibench.labels.LLGPlus": ("LLG+ (labels)", _WAINAKH),
    "gibench.labels.LLGStar": ("LLG* (labels)", _WAINAKH),
    "gibench.labels.IDLG": ("iDLG's rule (labels)", _ZHAO),
    "gibench.labels.GradInversionRule": ("GradInversion's rule (labels)", _YIN),
    "gibench.labels.BiasCorrected": ("Bias-corrected rule (labels)", None),
    "gibench.labels.BiasSign": ("Bias sign (labels)", None),
    "gibench.labels.RandomLabels": ("Random labels", None),
}
_CLOSED = {"BiasAttack", "RGAP", "SPEAR", "LabelInference"}
_RISING: tuple[Family, ...] = ("none", "handcrafted", "statistics", "density", "generative", "learned inverter")
_ROOMS: dict[str, Family] = {"generators": "generative", "inverters": "learned inverter"}
_FAMILIES: dict[str, Family] = {
    "TotalVariation": "handcrafted",
    "L2Norm": "handcrafted",
    "GroupConsistency": "handcrafted",
    "BatchNormStatistics": "statistics",
    "GaussianPixels": "density",
    "PrincipalComponents": "density",
    "ProbabilisticPCA": "density",
    "Latent": "generative",
}


def describe(name: str, configuration: Mapping[str, Any], about: Mapping[str, Any]) -> Method:
    """Describe the attack of a configuration: what is known of it, with what `about` says laid over.

    Raises:
        ConfigurationError: for an attack that is not known here and that `about` does not describe, or not as the
            schema wants it.
    """
    part = configuration["attack"]
    path = str(part["class_path"])
    if path == "gibench.attacks.LabelInference":
        path = str(part.get("init_args", {}).get("labels", {}).get("class_path", path))
    title, citation = KNOWN.get(path, (None, None))
    own = title is not None and citation is None
    found = {
        "name": name,
        "title": about.get("title", title),
        "family": about.get("family") or family(configuration),
        "fidelity": about.get("fidelity", "own" if own else "unverified"),
        "citation": about.get("citation", citation.model_dump() if citation else None),
    }
    if found["title"] is None or found["family"] is None:
        raise ConfigurationError(
            f"{path} is not known here; say its title, its family and its citation in a file, and pass --about FILE."
        )
    if isinstance(found["citation"], dict):
        found["citation"] = found["citation"] | {"authors": tuple(found["citation"].get("authors") or ())}
    try:
        return Method.model_validate(found)
    except ValidationError as error:
        said = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_input=False)]
        raise ConfigurationError(f"what is said of {name} does not fit the schema: {'; '.join(said)}") from error


def family(configuration: Mapping[str, Any]) -> Family | None:
    """What an attack believes of images, read off its room or its parts; None where it cannot be built here."""
    room = str(configuration["attack"]["class_path"]).partition(".")[0]
    if room in _ROOMS:
        return _ROOMS[room]
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_argument("--attack", type=Attack)
    try:
        attack = instantiate(parser, parser.parse_object({"attack": configuration["attack"]})).attack
    except (ArgumentError, GibenchError, OSError):
        return None
    return _family(attack)


def _family(attack: Any) -> Family | None:  # noqa: ANN401 - attacks have no common parts
    kind = type(attack)
    if kind.__name__ in _CLOSED:
        return "closed form"
    believed: set[Family] = {"none"}
    others = [other for name in ("attack", "initial") if (other := getattr(attack, name, None)) is not None]
    parts = [attack, *getattr(attack, "priors", ()), getattr(attack, "pixels", None), *others]
    for part in (each for each in parts if each is not None):
        room = type(part).__module__.partition(".")[0]
        if room in _ROOMS:
            believed.add(_ROOMS[room])
        elif any(part is other for other in others):
            believed.add(_family(part) or "none")
        elif type(part).__name__ in _FAMILIES:
            believed.add(_FAMILIES[type(part).__name__])
        elif part is not attack and part in list(getattr(attack, "priors", ())):
            return None
    return max(believed - {"closed form"}, key=_RISING.index)
