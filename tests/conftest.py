"""Fixtures shared by all rooms."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers_ledger import whole  # noqa: F401 - a fixture
from helpers_pgsecure import secure_server  # noqa: F401 - a fixture
from helpers_postgres import own_postgres, postgres_server, postgres_url  # noqa: F401 - fixtures
from helpers_store import any_ledger, any_url, postgres_cleaned, sqlite_ledger, sqlite_template  # noqa: F401 - fixtures
from helpers_zygote import zygote  # noqa: F401 - a fixture
from hypothesis import settings

# The same examples at every run: a gate must not fail by luck. WBCD_RANDOM_EXAMPLES=1 hunts for new ones.
settings.register_profile("steady", derandomize=True, deadline=None)
if not os.environ.get("WBCD_RANDOM_EXAMPLES"):
    settings.load_profile("steady")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the measured samples (not part of the project); tests that need it skip where it is absent."""
    for candidate in (os.environ.get("WBCD_SHARED_DATA"), Path(__file__).parents[2] / "shared" / "data"):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    pytest.skip("the measured samples are not here (set WBCD_SHARED_DATA)")
