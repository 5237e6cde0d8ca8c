"""Threat models in a line."""

from gibench.types import ThreatModel

_HEADLINE = {
    "server": {"honest": "", "malicious": "malicious server"},
    "victim": {
        "initial": "initial weights",
        "trained": "trained for some steps",
        "converged": "trained to convergence",
    },
    "batch_norm": {
        "absent": "",
        "eval": "BatchNorm with public statistics",
        "private": "BatchNorm with private statistics",
        "shared": "BatchNorm with shared statistics",
    },
    "labels": {
        "ordered": "labels known",
        "counts": "label counts known",
        "set": "set of labels known",
        "none": "labels unknown",
    },
    "update": {"gradient": "one gradient", "fedavg": "FedAvg"},
    "local_steps": {"known": "", "unknown": "local steps unknown"},
    "batch_size": {"known": "", "unknown": "batch size unknown"},
    "prior_data": {
        "none": "",
        "out_of_distribution": "other images, out of distribution",
        "in_distribution": "other images, in distribution",
    },
    "defense": {"none": "no defense", "known": "known defense", "unknown": "unknown defense"},
    "defense_randomness": {"unknown": "", "known": "its randomness known"},
}


def headline(threat_model: ThreatModel) -> str:
    """Name a threat model by what matters in it."""
    flags = threat_model.model_dump()
    parts = [said[flags[flag]] for flag, said in _HEADLINE.items()]
    text = " · ".join(part for part in parts if part)
    return text[0].upper() + text[1:]


def position(threat_model: ThreatModel) -> tuple[int, ...]:
    """Where a threat model's table stands among the others: flag by flag as they are named above, the usual first."""
    flags = threat_model.model_dump()
    return tuple(list(said).index(flags[flag]) for flag, said in _HEADLINE.items())
