"""A small folder of results."""

from pathlib import Path

import pytest
from entries import entry_tree, write_entry


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Three rows of one scenario, and one of another threat model."""
    folder = tmp_path / "results"
    for attack, level in (("ig", 18.0), ("dlg", 24.0), ("weak", 12.0)):
        write_entry(folder, entry_tree(attack, level=level))
    write_entry(folder, entry_tree("ig", victim="trained"))
    return folder
