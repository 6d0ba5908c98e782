"""What `pip install echoplan` brings along may be passed on with it: no GPL, and LGPL is named in the README."""

from __future__ import annotations

import configparser
import re
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def required(extra=None):
    """The lines of setup.cfg's install_requires, or of one of its extras."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    text = setup["options.extras_require"][extra] if extra else setup["options"]["install_requires"]
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def installed(requirements):
    """Name -> distribution of what is asked for, and of all that it asks for in turn, where it is installed."""
    found, waiting = {}, list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = re.split(r"[\s;\[<>=!~(]", requirement)[0].lower().replace("_", "-")
        if name in found or "extra ==" in requirement:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        waiting += found[name].requires or []
    return found


def licence(distribution):
    """What the distribution's metadata say, in one line."""
    about = distribution.metadata
    classifiers = [line for line in about.get_all("Classifier") or [] if line.startswith("License ::")]
    text = about.get("License") or ""
    return "; ".join([about.get("License-Expression") or "", text.splitlines()[0] if text else "", *classifiers])


def copyleft(text):
    """ "GPL", "LGPL" or nothing."""
    text = re.sub(r"lesser general public|library general public", "LGPL", text, flags=re.IGNORECASE)
    kinds = set(re.findall(r"\bL?GPL|\bAGPL|General Public License", text, flags=re.IGNORECASE))
    return "GPL" if kinds - {"LGPL"} else "LGPL" if kinds else ""


@pytest.mark.parametrize(
    ("text", "kind"),
    [("GPL V3.0", "GPL"), ("OSI Approved :: GNU General Public License v3 (GPLv3)", "GPL"), ("MIT", ""), ("", ""),
     ("LGPL-3.0-or-later", "LGPL"), ("GNU Lesser General Public License v3 (LGPLv3)", "LGPL"), ("AGPL-3.0", "GPL")],
)  # fmt: skip
def test_licences_are_told_apart(text, kind):
    assert copyleft(text) == kind


def test_nothing_that_is_required_is_gpl():
    distributions = installed([*required(), *required("onnx"), *required("openvino")])
    assert {"torch", "av", "pydicom", "numpy"} <= set(distributions)
    kinds = {name: copyleft(licence(distribution)) for name, distribution in distributions.items()}
    assert [name for name, kind in kinds.items() if kind == "GPL"] == []
    named = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name, kind in kinds.items() if kind == "LGPL" and name not in named] == []


def test_the_extra_for_gpl_says_so():
    assert [re.split(r"[<>=]", line)[0] for line in required("gpl")] == ["pylibjpeg-libjpeg"]
    for distribution in installed(required("gpl")).values():
        assert distribution.name != "pylibjpeg-libjpeg" or copyleft(licence(distribution)) == "GPL"
