"""What the pages are made with: templates that escape, styles in two schemes, policies by hash, JSON in a script."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import Environment
from markupsafe import Markup

from gibench.errors import ConfigurationError
from gibench.report import words
from gibench.report.page import escaping
from leaderboard.exports import bibtex
from leaderboard.rows import COLORS
from leaderboard.threat_models import headline


def environment() -> Environment:
    """Names, citations and configurations are somebody else's text: escaped. A missing variable is an error."""
    environment = escaping("leaderboard", "page")
    environment.filters |= {
        "amount": words.amount,
        "bibtex": bibtex,
        "bounds": words.bounds,
        "color": lambda family: COLORS[family],
        "counted": lambda number, one, many: f"{number} {one if number == 1 else many}",
        "decibels": words.decibels,
        "headline": headline,
        "in_words": words.threat_model_in_words,
        "percent": words.percent,
        "signed": words.signed,
        "yaml": lambda value: yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100),
    }
    return environment


def style() -> str:
    """The report's colors and charts, and the styles of this page; a chosen scheme goes over the system's."""
    light = files("gibench.report").joinpath("charts.css").read_text(encoding="utf-8")
    report = files("gibench.report").joinpath("report.css").read_text(encoding="utf-8")
    found = re.search(r"@media \(prefers-color-scheme: dark\) \{\s*:root \{(?P<colors>[^}]*)\}\s*\}", report)
    if found is None:
        raise ConfigurationError("report.css has no dark colors; see `style`.")
    dark = found["colors"].strip()
    schemes = (
        f"@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ {dark} }} }}\n"
        f":root[data-theme=dark] {{ {dark} color-scheme: dark; }}\n:root[data-theme=light] {{ color-scheme: light; }}\n"
    )
    return f"{light}{schemes}{asset('board.css')}"


def asset(name: str) -> str:
    """A file of the page: a style or a script."""
    return files("leaderboard").joinpath("page", name).read_text(encoding="utf-8")


def rules() -> str:
    """RULES.md."""
    return files("leaderboard").joinpath("RULES.md").read_text(encoding="utf-8")


def source(text: str) -> str:
    """What a policy allows: the text with this hash, and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def in_script(data: Mapping[str, Any]) -> Markup:
    """JSON that no text in it can end the element that holds it with."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)  # noqa: S704 - escaped on the line above
