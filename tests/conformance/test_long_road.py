"""The whole road on the networks that take longest."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.frontends import load
from passes import Pipeline
from tests.models import LONG_LIGHT_MODELS, light_model
from tests.test_road import whole_road


@pytest.mark.parametrize("name", LONG_LIGHT_MODELS)
def test_long_networks(name: str, tmp_path: Path) -> None:
    whole_road(Pipeline("simplify")(load(light_model(name))), tmp_path)
