"""What the README shows is what the tests run."""

from pathlib import Path

import pytest
from test_end_to_end_examples import OWN_DATA, OWN_NETWORK

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("example", [OWN_NETWORK, OWN_DATA], ids=["network", "data"])
def test_examples_are_the_tested_ones(example):
    assert f"```python\n{example}```" in README


def test_pictures_are_there():
    pictures = [part.split(")")[0] for part in README.split("](")[1:]]
    local = [picture for picture in pictures if not picture.startswith("http")]
    assert local and all((ROOT / picture).is_file() for picture in local)
