"""Reference measurements that no heart has, or that were written in another unit."""

from __future__ import annotations


def impossible_references(ef_percent: float | None, edv_ml: float | None, esv_ml: float | None) -> dict[str, str]:
    """Column of cases.csv -> why its value cannot be; volumes that contradict each other share one reason.

    Example:
        >>> impossible_references(0.55, 120.0, 50.0)
        {'ef_percent': 'ef_percent is 0.55; an ejection fraction lies in 1 to 100 percent (is it a share of 1?)'}
    """
    wrong = {
        name: f"{name} is {volume:g}; a volume is more than 0"
        for name, volume in (("edv_ml", edv_ml), ("esv_ml", esv_ml))
        if volume is not None and volume <= 0
    }
    if not wrong and edv_ml is not None and esv_ml is not None and edv_ml < esv_ml:
        wrong = dict.fromkeys(
            ("edv_ml", "esv_ml"), f"edv_ml ({edv_ml:g}) is less than esv_ml ({esv_ml:g}): are they exchanged?"
        )
    if ef_percent is not None and not 1 < ef_percent <= 100:
        hint = " (is it a share of 1?)" if 0 < ef_percent <= 1 else ""
        wrong["ef_percent"] = f"ef_percent is {ef_percent:g}; an ejection fraction lies in 1 to 100 percent{hint}"
    return wrong
