"""Shapes whose volumes are known, and the real masks where they are at hand."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import half_ellipsoids

from ..real_data import REAL_DATA

FLAGS = ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
         "disable-component-update", "disable-sync", "window-size=1280,900",
         "force-prefers-reduced-motion")  # a smooth scroll would carry what is to be clicked away  # fmt: skip
CAMUS = REAL_DATA / "camus_mhd"


@pytest.fixture(scope="session")
def half_ellipsoid():
    """half_ellipsoid(length, width, spacing, ...) -> (mask, volume in mL)."""
    return half_ellipsoids.half_ellipsoid


@pytest.fixture(scope="session")
def camus_masks():
    """camus_masks(patient, view, phase) -> (LV mask (H, W), (row, col) spacing); skips where CAMUS is not at hand."""
    if not CAMUS.is_dir():
        pytest.skip("the CAMUS patients are not on this machine")
    sitk = pytest.importorskip("SimpleITK")

    def load(patient, view, phase):
        image = sitk.ReadImage(str(CAMUS / patient / f"{patient}_{view}_{phase}_gt.mhd"))
        column, row = image.GetSpacing()[:2]
        return np.squeeze(sitk.GetArrayFromImage(image)) == 1, (row, column)

    return load


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium; skips where it is not at hand."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    programs = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if programs is None or driver is None:
        pytest.skip("there is no chromium with its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs
    for flag in (*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.fixture
def opened(browser):
    """opened(file) -> the browser with that page wholly loaded, which has nothing to complain about at the end."""
    wait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait(browser, timeout=600)

    def get(file):
        browser.get(file.as_uri())  # returns early where the page before it is large
        wait.until(lambda _: browser.execute_script("return document.readyState") == "complete")
        return browser

    yield get
    assert browser.get_log("browser") == []
