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
        "none": "labels unknown",
        "counts": "label counts known",
        "set": "set of labels known",
        "ordered": "labels known",
    },
    "update": {"gradient": "one gradient", "fedavg": "FedAvg"},
    "local_steps": {"known": "", "unknown": "local steps unknown"},
    "batch_size": {"known": "", "unknown": "batch size unknown"},
    "prior_data": {
        "none": "",
        "out_of_distribution": "other images, out of distribution",
        "in_distribution": "other images, in distribution",
    },
    "defense": {"none": "no defense", "unknown": "unknown defense", "known": "known defense"},
    "defense_randomness": {"unknown": "", "known": "its randomness known"},
}


def headline(threat_model: ThreatModel) -> str:
    """Name a threat model by what matters in it."""
    flags = threat_model.model_dump()
    parts = [said[flags[flag]] for flag, said in _HEADLINE.items()]
    text = " · ".join(part for part in parts if part)
    return text[0].upper() + text[1:]
