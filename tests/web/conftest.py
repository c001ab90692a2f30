"""Browsers for the tests of pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.web.browser import Browser
from tests.web.chromium import Chromium, open_chromium
from tests.web.firefox import Firefox, open_firefox
from tests.web.nodes import FIREFOX, needs_chromium, needs_firefox


@pytest.fixture(scope="session")
def running_chromium() -> Iterator[Chromium]:
    with open_chromium() as running:
        yield running


@pytest.fixture(scope="session")
def running_firefox() -> Iterator[Firefox]:
    with open_firefox(str(FIREFOX)) as running:
        yield running


@pytest.fixture
def chromium(running_chromium: Chromium) -> Chromium:
    running_chromium.complaints()  # of tests before
    return running_chromium


@pytest.fixture(params=[pytest.param("chromium", marks=needs_chromium), pytest.param("firefox", marks=needs_firefox)])
def page(request: pytest.FixtureRequest) -> Browser:
    """Each browser in turn."""
    found = request.getfixturevalue(f"running_{request.param}")
    assert isinstance(found, Browser)
    found.complaints()  # of tests before
    return found
