"""A study's page: its words, and that a browser shows it without a network and without a complaint."""

from __future__ import annotations

import pandas as pd
import pytest

from echoplan.evaluation.comparison.learning_curve_plots import as_svg, draw_learning_curves
from echoplan.evaluation.comparison.learning_curves import learning_curves
from echoplan.evaluation.comparison.scores import frame_scores
from echoplan.evaluation.comparison.study_report import CURVE_NOTES, curve_tables, trend_statements, write_study_report


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    def cell(patients: int, seed: int) -> pd.DataFrame:
        frames = {"predicted_pixels": 9, "reference_pixels": 9, "hd": 3, "hd95": 2, "assd": 1}
        per_case = {
            f"c{number}": {
                "distance_unit": "px", "ed_frame": 0, "es_frame": None,
                "frames": [{"frame": 0, "LV": {**frames, "dice": 0.5 + patients / 100 + number / 50, "iou": 0.4}}],
            }
            for number in range(4)
        }  # fmt: skip
        training = {"size": str(patients), "patients": patients, "clips": patients, "fold": 0, "seed": seed}
        return frame_scores(per_case).assign(method="<b>UNet", frames=1, augmentation="own", **training)

    curves = learning_curves(pd.concat([cell(patients, seed) for patients in (5, 20) for seed in (0, 1)]), "LV")
    file = tmp_path_factory.mktemp("page") / "report.html"
    write_study_report(
        file,
        title="Study data of CAMUS",
        curves=curves,
        figure_svg=as_svg(draw_learning_curves(curves)),
        sections=[("Figures", curve_tables(curves), CURVE_NOTES)],
        failures={"PKEcho__n5 fold 1": "the disk's cable was <pulled>"},
        details={"Trainings": 4},
    )
    return file, curves


def test_the_page_says_what_the_curves_do_and_escapes_names(page):
    file, curves = page
    (statement,) = trend_statements(curves)
    assert statement.startswith("<b>UNet rises: 7.50 points of Dice for twice the patients (95 % interval 7.50 to 7.50")
    text = file.read_text()
    assert "&lt;b&gt;UNet rises: 7.50 points" in text and "<b>UNet" not in text and "&lt;pulled&gt;" in text


def test_a_browser_shows_it(page, opened):
    browser = opened(page[0])
    image = browser.find_element("css selector", ".curves img")
    assert browser.execute_script("return arguments[0].complete && arguments[0].naturalWidth > 200", image)
    assert len(browser.find_elements("css selector", "table.study")) == 3
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(wide) == 0
