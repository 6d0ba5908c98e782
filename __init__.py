"""Lets `import echoplan` work from the folder that holds a clone called echoplan, where this file is the first found.

Without it Python takes the clone itself for a package without code, even where EchoPlan is installed (`make install`).
"""

import importlib.util
import sys
from pathlib import Path

if __name__ == "echoplan":
    _package = Path(__file__).resolve().parent / "echoplan"
    _spec = importlib.util.spec_from_file_location(
        __name__, _package / "__init__.py", submodule_search_locations=[str(_package)]
    )
    assert _spec is not None and _spec.loader is not None
    # What is imported is what lies in sys.modules when this file ends.
    sys.modules[__name__] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[__name__])
