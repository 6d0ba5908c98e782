"""Where real echoes and published weights lie that some tests use; without them these tests skip."""

from __future__ import annotations

import os
from pathlib import Path

REAL_DATA = Path(os.environ.get("ECHOPLAN_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
