"""report.html as people use it: in a headless browser, by mouse and by keyboard."""

from __future__ import annotations

import base64
import csv
import io
import time
from dataclasses import replace

import numpy as np
import pytest
from masked import Masked, measured
from PIL import Image

from echoplan.evaluation import make_film, measure_patients, write_ef_report, write_report
from echoplan.evaluation.report import page as report

selenium = pytest.importorskip("selenium", reason="selenium is not installed")

from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

SPACING = (0.8, 0.8)
FRAMES = 10
ED, ES = 0, 5


@pytest.fixture(scope="module")
def folder(half_ellipsoid, tmp_path_factory):
    """A report of four patients (the second to check, the last not measurable) on two pages, with its CSV."""
    folder = tmp_path_factory.mktemp("report")
    random = np.random.default_rng(0)
    cases = []
    for number in range(4):
        squeeze = 0.16 * np.sin(np.pi * np.arange(FRAMES) / FRAMES)
        sizes = [((70 - number) * (1 - s / 2), 36 * (1 - (1 + 0.3 * number) * s)) for s in squeeze]
        mask = np.stack([half_ellipsoid(*size, SPACING, shape=(120, 100))[0] for size in sizes])
        known = {"ef_percent": 30.0 + 3 * number, "edv_ml": 45.0 + number}
        cases.append(Masked(f"clip {number}", mask if number < 3 else mask * 0, f"patient {number}", "A4C", SPACING,
                              50.0, **known))  # fmt: skip
    measurements = [measured(case) for case in cases]
    films = [
        make_film(
            found, (case.mask * 90 + random.integers(0, 60, case.mask.shape)).astype(np.uint8), case.mask, SPACING
        )
        for case, found in zip(cases, measurements, strict=True)
    ]
    rows = measure_patients(measurements)
    for number, row in enumerate(rows[:3]):
        bounds = {f"{name}_{end}_{unit}": getattr(row, f"{name}_{unit}") + shift
                  for name, unit in (("ef", "percent"), ("edv", "ml"), ("esv", "ml"))
                  for end, shift in (("low", -3), ("high", 3))}  # fmt: skip
        quality, reasons = ("check", "the area curve is ragged") if number == 1 else ("no warning", "")
        rows[number] = replace(row, **bounds, interval_coverage_percent=90.0, quality=quality, quality_reasons=reasons)
    write_ef_report(folder, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "CASES_A_PAGE", 3)
        write_report(folder / "report.html", rows=rows, measurements=measurements, films=films)
    return folder


@pytest.fixture
def page(opened, folder):
    """The first page, freshly loaded."""
    return Page(opened(folder / "report.html"))


@pytest.fixture(scope="module")
def table(folder):
    with open(folder / "ef_report.csv", newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


class Page:
    """What tests do with the page."""

    def __init__(self, browser):
        self.browser = browser

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def patients(self):
        """Those the table shows, from top to bottom."""
        return [row.get_attribute("data-patient") for row in self.all(".patients tbody tr") if row.is_displayed()]

    def stage(self, number=1):
        """A player's stage, opened: scrolled to, and its pictures decoded."""
        stage = self.one(f"#case-{number} .stage")
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", stage)
        self.wait(lambda: self.pixels(number) is not None)
        return stage

    def pixels(self, number=1):
        """What the player shows, (H, W, 4) as bytes; None while it is blank."""
        url = self.run("return document.querySelector(`#case-${arguments[0]} canvas`).toDataURL()", number)
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA"))
        return picture.tobytes() if picture.any() else None

    def wait(self, condition, seconds=300):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.02)


def frame_of(stage):
    return int(stage.get_attribute("aria-valuenow"))


def test_the_table_has_the_numbers_of_the_csv(page, table):
    assert page.patients() == [row["patient"] for row in table]
    for row, line in zip(table, page.all(".patients tbody tr"), strict=True):
        for column in ("ef_percent", "reference_ef_percent", "edv_ml", "esv_ml"):
            cell = line.find_element(By.CSS_SELECTOR, f"[data-column={column}]")
            assert cell.get_attribute("data-value") == row[column]
            shown = f"{float(row[column]):.1f}" if row[column] else "–"
            assert cell.text.split("\n")[0] == shown
        name = "ef"
        if row["ef_percent"]:
            interval = f"{float(row[f'{name}_low_percent']):.1f} to {float(row[f'{name}_high_percent']):.1f}"
            assert interval in line.text


def test_the_figures_have_the_numbers_of_the_csv(page, table):
    measured = [row for row in table if row["ef_percent"]]
    pairs = [(float(row["reference_ef_percent"]), float(row["ef_percent"])) for row in measured]
    expected = {
        "predicted against reference EF": pairs,
        "Bland-Altman plot of EF": [((x + y) / 2, y - x) for x, y in pairs],
    }
    for name, values in expected.items():
        scale, points, patients = page.run(
            "const svg = document.querySelector(`figure svg[aria-label='${arguments[0]}']`);"
            "const place = use => ['x', 'y'].map(name => +use.getAttribute(name));"
            "return [svg.dataset.scale.split(' ').map(Number), [...svg.querySelectorAll('.points use')].map(place),"
            "JSON.parse(svg.parentElement.dataset.patients)]",
            name,
        )
        x0, dx, y0, dy = scale
        assert patients == [row["patient"] for row in measured]
        np.testing.assert_allclose([((x - x0) / dx, (y - y0) / dy) for x, y in points], values, atol=2e-3)


def test_a_click_on_a_heading_sorts_with_the_unmeasured_last(page, table):
    heads = {head.text: head for head in page.all(".patients thead button")}
    known = sorted((row for row in table if row["ef_percent"]), key=lambda row: float(row["ef_percent"]))
    names = [row["patient"] for row in known]
    heads["EF, %"].click()
    assert page.patients() == [*names, "patient 3"]
    assert page.all(".patients th[aria-sort=ascending]")[0].text.startswith("EF")
    heads["EF, %"].send_keys(Keys.ENTER)  # the keyboard sorts too
    assert page.patients() == [*names[::-1], "patient 3"]
    heads["Patient"].click()
    assert page.patients() == [f"patient {number}" for number in range(4)]
    assert len(page.all("[aria-sort]")) == 1


def test_words_and_the_check_flag_filter_patients_and_clips(page):
    search = page.one("#search")
    search.send_keys("PATIENT")
    assert len(page.patients()) == 4
    search.send_keys(" 2")
    assert page.patients() == ["patient 2"]
    assert [clip.get_attribute("id") for clip in page.all(".clip") if clip.is_displayed()] == ["case-3"]
    assert page.one("#count").text == "1 of 4"
    search.send_keys(" nonsense")
    assert page.patients() == []
    search.send_keys(Keys.CONTROL, "a", Keys.DELETE)
    page.one("#only-check").click()
    assert page.patients() == ["patient 1", "patient 3"]  # the doubtful and the one that was not measured
    assert "ragged" in page.one(".patients tr[data-check] .note").text
    page.one("#only-check").click()
    assert len(page.patients()) == 4


def test_a_point_of_a_plot_names_its_patient_and_finds_it(page):
    point = page.all("figure .points use")[1]
    assert point.find_element(By.CSS_SELECTOR, "title").get_attribute("textContent") == "patient 1"
    ActionChains(page.browser).click(point).perform()
    assert page.patients() == ["patient 1"]


def test_the_keyboard_steps_and_plays(page):
    stage = page.stage()
    assert stage.get_attribute("role") == "slider" and frame_of(stage) == ED
    before = page.pixels()
    stage.send_keys(Keys.ARROW_RIGHT)
    assert frame_of(stage) == 1 and page.pixels() != before
    assert "frame 1, 0.050 s" in stage.get_attribute("aria-valuetext")
    for key, frame in ((Keys.END, FRAMES - 1), (Keys.ARROW_RIGHT, FRAMES - 1), (Keys.ARROW_LEFT, FRAMES - 2),
                       (Keys.HOME, 0), (Keys.ARROW_LEFT, 0), ("s", ES), ("d", ED)):  # fmt: skip
        stage.send_keys(key)
        assert frame_of(stage) == frame
    assert page.pixels() == before
    play = page.one("#case-1 .play")
    stage.send_keys(Keys.SPACE)
    assert play.get_attribute("aria-label") == "Pause"
    page.wait(lambda: frame_of(stage) > 2)
    stage.send_keys(Keys.SPACE)
    assert play.get_attribute("aria-label") == "Play"
    resting = frame_of(stage)
    time.sleep(0.15)
    assert frame_of(stage) == resting
    stage.send_keys(Keys.TAB)
    assert page.browser.switch_to.active_element == play


def test_playing_keeps_the_clips_own_time(page):
    stage = page.stage()

    def played():
        """Frames that passed, less those of the time that passed."""
        return page.run(
            "const stage = arguments[0], begun = performance.now(), from = +stage.ariaValueNow;"
            "const space = () => stage.dispatchEvent(new KeyboardEvent('keydown', {key: ' ', bubbles: true}));"
            "const all = +stage.ariaValueMax - +stage.ariaValueMin + 1; space();"
            "return new Promise(done => setTimeout(() => { const now = +stage.ariaValueNow, end = performance.now();"
            " space(); done((now - from + all) % all - (end - begun) / 50) }, 430))",
            stage,
        )

    # A busy machine draws late, which says nothing of the player; one of another pace never has the clip's.
    assert any(-1.3 < played() < 0.3 for _ in range(30))


def test_the_curve_scrubs_and_its_cursor_follows(page):
    stage = page.stage()
    curve = page.one("#case-1 .curve svg")

    def place(frame):
        """Of a frame on the curve, from the middle of the element in CSS pixels."""
        return page.run(
            "const [curve, frame] = arguments, [x0, dx, y0] = curve.dataset.scale.split(' ').map(Number);"
            "const at = new DOMPoint(x0 + frame * dx, y0 - 40).matrixTransform(curve.getScreenCTM());"
            "const box = curve.getBoundingClientRect();"
            "return [Math.round(at.x - box.x - box.width / 2), Math.round(at.y - box.y - box.height / 2)]",
            curve,
            frame,
        )

    ActionChains(page.browser).move_to_element_with_offset(curve, *place(7)).click().perform()
    assert frame_of(stage) == 7
    drag = ActionChains(page.browser).move_to_element_with_offset(curve, *place(2)).click_and_hold()
    drag.move_to_element_with_offset(curve, *place(ES)).release().perform()
    assert frame_of(stage) == ES
    assert "ES · frame 5 · 0.250 s" in page.one("#case-1 output").text
    x, y, scale = page.run(
        "const dot = arguments[0].querySelector('.cursor circle');"
        "return [+dot.getAttribute('cx'), +dot.getAttribute('cy'), arguments[0].dataset.scale.split(' ').map(Number)]",
        curve,
    )
    area = float(page.one("#case-1 output").text.split(" · ")[-1].removesuffix(" cm²"))
    assert (x - scale[0]) / scale[1] == pytest.approx(ES)
    assert (y - scale[2]) / scale[3] == pytest.approx(area, abs=0.06)
    page.all("#case-1 .stills figure")[0].click()
    assert frame_of(stage) == ED


def test_outline_axis_and_discs_can_be_taken_away(page):
    stage = page.stage()
    whole = page.pixels()
    page.one("#case-1 .show-marks").click()
    without_discs = page.pixels()
    page.one("#case-1 .show-outline").click()
    bare = page.pixels()
    assert len({whole, without_discs, bare}) == 3
    colours = [np.ptp(np.frombuffer(shown, np.uint8).reshape(-1, 4)[:, :3].astype(int), axis=1).max() > 50
               for shown in (whole, without_discs, bare)]  # fmt: skip
    assert colours == [True, True, False]
    page.one("#case-1 .show-marks").click()
    page.one("#case-1 .show-outline").click()
    stage.send_keys(Keys.ARROW_RIGHT)
    between = page.pixels()
    page.one("#case-1 .show-marks").click()
    assert page.pixels() == between  # discs belong to end-diastole and end-systole


def test_pictures_are_decoded_only_near_the_screen(page):
    page.browser.set_window_size(1280, 400)
    page.browser.refresh()
    assert page.pixels(3) is None
    page.stage(3)
    page.browser.set_window_size(1280, 900)


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_sticks_out_at_any_width(page, width):
    metrics = {"width": width, "height": 740, "deviceScaleFactor": 2, "mobile": width < 500}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.browser.refresh()
        assert page.run("return document.documentElement.scrollWidth") <= width
        wide = page.run(
            "return [...document.querySelectorAll('main *')].filter(part => !part.closest('.wide, svg, details') && "
            "part.getBoundingClientRect().right > innerWidth + 1).map(part => part.outerHTML.slice(0, 80))"
        )
        assert wide == []
        assert page.one("#case-1 .stage").size["width"] > 200
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_paper_shows_stills_in_place_of_players(page):
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not page.one("#case-1 .player").is_displayed() and not page.one("#search").is_displayed()
        pictures = page.all("#case-1 .stills img")
        assert [picture.is_displayed() for picture in pictures] == [True, True]
        assert all(page.run("return arguments[0].naturalWidth", picture) > 100 for picture in pictures)
        lines = page.all("#case-1 .stills path.discs")
        assert [line.get_attribute("d").count("M") for line in lines] == [20, 20]
    finally:
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_reduced_motion_is_respected(page):
    behaviour = "return getComputedStyle(document.documentElement).scrollBehavior"
    assert page.run(behaviour) == "auto"
    feature = {"features": [{"name": "prefers-reduced-motion", "value": "no-preference"}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
    try:
        assert page.run(behaviour) == "smooth"
    finally:
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_every_control_has_a_name_and_a_place_in_order(page):
    unnamed = page.run(
        "return [...document.querySelectorAll('button, input, select, [tabindex], a[href]')].filter(part => !("
        "part.ariaLabel || part.textContent.trim() || part.labels?.length)).map(part => part.outerHTML.slice(0, 80))"
    )
    assert unnamed == []
    assert page.run("return [...document.querySelectorAll('[tabindex]')].every(part => part.tabIndex === 0)")
    assert page.run("const ids = [...document.querySelectorAll('[id]')].map(part => part.id);"
                    "return ids.length - new Set(ids).size") == 0  # fmt: skip


def test_the_pages_are_linked_both_ways(page, folder):
    page.all(".patients tbody a")[3].click()
    page.wait(lambda: page.browser.current_url == (folder / "report_2.html").as_uri() + "#case-4")
    assert page.one("#case-4 .flag").text == "▲ Not measured"
    assert frame_of(page.stage(4)) == 0  # a clip without a cavity can still be seen
    page.one("a[rel=prev]").click()
    page.wait(lambda: page.browser.current_url.partition("#")[0] == (folder / "report.html").as_uri())
    assert len(page.patients()) == 4
