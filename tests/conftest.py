"""Fixtures for every test: golden texts, and which folders run only when asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

GOLDEN = Path(__file__).parent / "golden"

_ON_REQUEST = ("conformance", "benchmarks")
"""Folders that a plain `pytest` leaves out: they are slow, and run by `make conformance` and `make bench`."""

settings.register_profile("secateur", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("secateur")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden texts instead of comparing")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    inside = collection_path.relative_to(GOLDEN.parent).parts if collection_path.is_relative_to(GOLDEN.parent) else ()
    folder = inside[0] if inside else ""
    return True if folder in _ON_REQUEST and not any(folder in arg for arg in config.args) else None


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """golden(text, name): `text` must equal tests/golden/<name>.txt; --update-golden writes it."""

    def check(text: str, name: str) -> None:
        path = GOLDEN / f"{name}.txt"
        text = text.rstrip("\n") + "\n"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        assert path.exists(), f"there is no golden text {name!r} yet; run pytest --update-golden"
        assert text == path.read_text(encoding="utf-8"), "run pytest --update-golden if the new text is right"

    return check
