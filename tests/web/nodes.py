"""Node and browsers for tests: where they are missing, tests are skipped with a plain message."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from backends.runtime.node import OLDEST, node

HERE = Path(__file__).parent

needs_node = pytest.mark.skipif(node() is None, reason=f"Node {OLDEST} or newer is not on PATH")
needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None or shutil.which("chromedriver") is None,
    reason="chromium and chromedriver are not on PATH (Debian: apt-get install chromium chromium-driver)",
)
FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
needs_firefox = pytest.mark.skipif(
    FIREFOX is None, reason="firefox is not on PATH (Debian: apt-get install firefox-esr)"
)


def run_node(*arguments: str | Path, flags: tuple[str, ...] = (), environment: Mapping[str, str] | None = None) -> str:
    """Standard output of a script, which must end well."""
    import os

    command = [str(node()), *flags, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=os.environ | dict(environment or {})
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def description(package: Path) -> dict[str, Any]:
    """What a package's loader knows of its model."""
    text = (package / "model.js").read_text()
    found = json.loads(text[text.index("{") : text.index("\n};") + 2])
    assert isinstance(found, dict)
    return found
