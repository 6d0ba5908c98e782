"""How what only some commands need is installed."""

from __future__ import annotations


def how_to_install(extra: str) -> str:
    """The command that installs an extra of setup.cfg. EchoPlan is in no index of packages: only its checkout has them.

    Example:
        >>> how_to_install("dicom")
        "in EchoPlan's checkout: pip install '.[dicom]'"
    """
    return f"in EchoPlan's checkout: pip install '.[{extra}]'"
