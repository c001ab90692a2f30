"""Browsers for the tests of pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.web.browser import Browser
from tests.web.chromium import Chromium, open_chromium
from tests.web.firefox import open_firefox
from tests.web.nodes import FIREFOX, needs_chromium, needs_firefox


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    with open_chromium() as running:
        yield running


@pytest.fixture(scope="session")
def firefox() -> Iterator[Browser]:
    with open_firefox(str(FIREFOX)) as running:
        yield running


@pytest.fixture(params=[pytest.param("chromium", marks=needs_chromium), pytest.param("firefox", marks=needs_firefox)])
def page(request: pytest.FixtureRequest) -> Browser:
    """Each browser in turn."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Browser)
    return found
