"""report.html of very many patients: what the page holds, and how it is sorted and searched in a browser."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from masked import Masked, measured
from PIL import Image

from echoplan.dataset import Case
from echoplan.evaluation import (
    make_film,
    measure_patients,
    write_ef_report,
    write_report,
)
from echoplan.evaluation.report import figures
from echoplan.evaluation.report.figures import POINTS, bland_altman, scatter
from echoplan.evaluation.report.page import CASES_A_PAGE, TABLE_ROWS

SPACING = (1.0, 1.0)
ROWS_SHOWN = 200
ENTER = "\ue007"


@pytest.fixture(scope="module")
def clip(half_ellipsoid):
    """(measurement, film) of three frames."""
    mask = np.stack([half_ellipsoid(*size, SPACING, shape=(100, 80))[0] for size in ((70, 40), (62, 30), (66, 35))])
    found = measured(Masked("clip", mask, "patient", "A4C", SPACING, 50.0))
    return found, make_film(found, mask * 90, mask, SPACING)


def rows_of(count, clip):
    """Rows of as many patients, every tenth to check and every hundredth not measured."""
    random = np.random.default_rng(0)
    (row,) = measure_patients([clip[0]])
    rows = []
    for number in range(count):
        ef, edv = float(random.normal(55, 12)), float(random.normal(110, 20))
        esv = edv * (1 - ef / 100)
        own = {"patient": f"patient {number}", "cases": f"clip {number}",
               "ef_percent": ef, "ef_low_percent": ef - 5, "ef_high_percent": ef + 5, "edv_ml": edv, "esv_ml": esv,
               "reference_ef_percent": ef + float(random.normal(0, 5)), "quality": "no warning"}  # fmt: skip
        if number % 10 == 3:
            own |= {"quality": "check", "quality_reasons": "the area curve is <ragged>"}
        if number % 100 == 7:
            own |= dict.fromkeys(("ef_percent", "edv_ml", "esv_ml", "ef_low_percent", "ef_high_percent", "method"))
            own["failure"] = "no frame of the clip has a cavity"
        rows.append(replace(row, **own))
    return rows


@pytest.fixture(scope="module")
def write(tmp_path_factory, clip):
    """write(patients, clips) -> folder of a report, whose clips all look alike."""

    def made(patients, clips):
        folder = tmp_path_factory.mktemp("large")
        measured, film = clip
        measurements = [replace(measured, case=Case(f"clip {n}", f"patient {n}")) for n in range(clips)]
        films = [replace(film, case=f"clip {n}") for n in range(clips)]
        rows = rows_of(patients, clip)
        agreement = write_ef_report(folder, rows)["agreement"]
        curve = figures.area_curve(measured)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(figures, "area_curve", lambda _: curve)  # a thousand would take a minute
            path = folder / "report.html"
            write_report(path, rows=rows, measurements=measurements, films=films, agreement=agreement)
        return folder

    return made


@pytest.fixture(scope="module")
def thousand(write):
    """A report of a thousand patients, each with a clip."""
    return write(1000, 1000)


@pytest.fixture(scope="module")
def thousands(write):
    """A report of five thousand patients, the first 150 of them with a clip."""
    return write(5000, 150)


@pytest.fixture(scope="module")
def table(thousands):
    with open(thousands / "ef_report.csv", newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


PATIENTS = "return [...document.querySelectorAll('.patients tbody tr')].map(row => row.dataset.patient)"
HEAD = "document.querySelectorAll('.patients thead button')[arguments[0]].click();"
SEARCH = (
    "const box = document.getElementById('search'); box.value = arguments[0];"
    "box.dispatchEvent(new Event('input', {bubbles: true}));"
)
PART = "return document.getElementById('part').textContent"


def test_a_thousand_cases_open(opened, thousand):
    assert len(list(thousand.glob("report*.html"))) == 10
    run = opened(thousand / "report.html").execute_script
    assert len(run(PATIENTS)) == TABLE_ROWS == 1000
    assert run("return document.querySelectorAll('article.clip').length") == CASES_A_PAGE
    assert run("return document.getElementById('rows')") is None
    assert run(f"{HEAD} {PATIENTS}", 0)[10] == "patient 10"
    assert run(f"{SEARCH} return document.getElementById('count').textContent", "patient 999") == "1 of 1000"
    for number in range(1, 11):
        file = thousand / ("report.html" if number == 1 else f"report_{number}.html")
        assert file.stat().st_size < 30_000_000
    opened(thousand / "report_10.html")


def test_five_thousand_patients_are_few_rows_and_few_bytes(opened, thousands):
    page = (thousands / "report.html").read_text(encoding="utf-8")
    assert len(page.encode()) < 400 * 5000 + 1_000_000
    assert page.count("<tr data-patient") == 0 and page.count("<use") < 200
    assert sorted(file.name for file in thousands.glob("*.html")) == ["report.html", "report_2.html", "report_3.html"]
    run = opened(thousands / "report.html").execute_script
    assert run(PATIENTS) == [f"patient {number}" for number in range(ROWS_SHOWN)]
    assert run(PART) == "Rows 1 to 200 of 5000"
    assert run("return document.querySelectorAll('*').length") < 6000
    assert run("return document.querySelector('nav.rows a').getAttribute('href')") == "ef_report.csv"
    assert run("return document.querySelectorAll('article.clip').length") == 0
    hrefs = "return [0, 149, 150].map(n => document.querySelectorAll('.patients tbody th')[n].querySelector('a')?.href)"
    place = thousands.as_uri()
    assert run(hrefs) == [f"{place}/report_2.html#case-1", f"{place}/report_3.html#case-150", None]


def test_a_row_shows_what_the_table_of_a_small_report_shows(opened, thousands, clip, tmp_path):
    rows = rows_of(20, clip)
    write_report(tmp_path / "small.html", rows=rows)
    cells = (
        "const cells = row => [...row.cells].map(cell => [cell.tagName, cell.className, cell.title, cell.innerText]);"
        "return [...document.querySelectorAll('.patients tbody tr')].slice(0, 20)"
        ".map(row => ['check' in row.dataset, ...cells(row)])"
    )
    small = opened(tmp_path / "small.html").execute_script(cells)
    assert opened(thousands / "report.html").execute_script(cells) == small
    assert "the area curve is <ragged>" in small[3][-1][-1] and "Not measured" in small[7][-1][-1]


def test_sorting_is_of_all_patients(opened, thousands, table):
    run = opened(thousands / "report.html").execute_script
    known = sorted((row for row in table if row["ef_percent"]), key=lambda row: float(row["ef_percent"]))
    lowest = [row["patient"] for row in known[:5]]
    assert run(f"{HEAD} {PATIENTS}", 1)[:5] == lowest
    highest = run(f"{HEAD} {PATIENTS}", 1)
    assert len(highest) == ROWS_SHOWN and highest[:5] == [row["patient"] for row in known[::-1][:5]]
    run("document.getElementById('last').click()")
    assert run(PATIENTS)[-50:] == [row["patient"] for row in table if not row["ef_percent"]]
    assert run(PART) == "Rows 4801 to 5000 of 5000"
    errors = {row["patient"]: float(row["ef_percent"]) - float(row["reference_ef_percent"]) for row in known}
    assert run(f"{HEAD} {PATIENTS}", 3)[0] == min(errors, key=errors.get)
    assert run(PART) == "Rows 1 to 200 of 5000"
    assert run(f"{HEAD} {HEAD} {PATIENTS}", 0)[:2] == ["patient 4999", "patient 4998"]
    assert run("return document.querySelectorAll('[aria-sort]').length") == 1


def test_searching_is_of_all_patients(opened, thousands):
    run = opened(thousands / "report.html").execute_script
    count = "return document.getElementById('count').textContent"
    assert run(f"{SEARCH} {PATIENTS}", "patient 4321") == ["patient 4321"]  # its whole name, and nothing else
    assert run(count) == "1 of 5000" and run(PART) == "Rows 1 to 1 of 1"
    named = [f"patient {number}" for number in range(5000) if "43" in str(number)]
    assert run(f"{SEARCH} {PATIENTS}", "43 CLIP") == named
    assert len(run(f"{SEARCH} {PATIENTS}", "ragged")) == ROWS_SHOWN and run(count) == "500 of 5000"
    assert run(f"{SEARCH} {PATIENTS}", "ragged cavity") == [] and run(PART) == "No rows"
    run(SEARCH, "")
    run("document.getElementById('only-check').click()")
    assert run(count) == "550 of 5000"
    assert all(name.endswith(("3", "7")) for name in run(PATIENTS))


def test_the_buttons_go_through_the_rows_by_keyboard_too(opened, thousands, browser):
    run = opened(thousands / "report.html").execute_script
    disabled = "return [...document.querySelectorAll('nav.rows button')].map(button => button.disabled)"
    assert run(disabled) == [True, True, False, False]
    run("document.getElementById('next').focus()")
    browser.switch_to.active_element.send_keys(ENTER)
    assert run(PATIENTS)[0] == "patient 200" and run(disabled) == [False] * 4
    run("document.getElementById('last').click()")
    assert run(PATIENTS)[-1] == "patient 4999" and run(disabled) == [False, False, True, True]
    run("document.getElementById('previous').click()")
    assert run(PART) == "Rows 4601 to 4800 of 5000"
    run("document.getElementById('first').click()")
    assert run(PATIENTS)[0] == "patient 0"


def test_plots_of_many_points_show_their_density(opened, thousands):
    run = opened(thousands / "report.html").execute_script
    images = run(
        "return Promise.all([...document.querySelectorAll('figure svg image')].map(async image => {"
        "const picture = new Image(); picture.src = image.href.baseVal; await picture.decode();"
        "return [picture.naturalWidth, image.getBoundingClientRect().width] }))"
    )
    assert len(images) == 2
    assert all(pixels > shown for pixels, shown in images)
    assert "4950 patients, darker where there are more" in run("return document.querySelector('figure').textContent")


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out(opened, thousands, browser, width):
    metrics = {"width": width, "height": 740, "deviceScaleFactor": 2, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        run = opened(thousands / "report.html").execute_script
        assert run("return document.documentElement.scrollWidth") <= width
        assert run("return document.querySelector('nav.rows').getBoundingClientRect().right") <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_limit_of_the_points():
    random = np.random.default_rng(0)
    for draw in (scatter, bland_altman):
        for count in (POINTS, POINTS + 1, 20 * POINTS):
            x = random.normal(50, 10, count)
            svg = draw(x + random.normal(0, 4, count), x, name="EF", unit="%").svg
            assert (svg.count("<use") > POINTS) == (count == POINTS)
            assert ("<image" in svg) == ("darker where there are more" in svg) == (count > POINTS)
            assert len(svg) < 150_000
            assert not re.search(r"base64,\s", svg)


def test_a_density_lies_where_its_points_are():
    random = np.random.default_rng(0)
    x = np.concatenate((np.full(3000, 40.0), random.normal(60, 8, 300)))
    plot = scatter(x + 20, x, name="EF", unit="%")
    image = re.search(r"<image[^>]*>", plot.svg).group()
    place = {name: float(number) for name, number in re.findall(r' (x|y|width|height)="(-?[\d.]+)"', image)}
    png = base64.b64decode(re.search(r"base64,([^\"]+)", image).group(1))
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).astype(int)
    assert picture.shape[:2] == (2 * place["height"], 2 * place["width"])
    darkest = (picture[..., 3] > 250) & (picture[..., :3].sum(axis=2) < 120)
    rows, columns = darkest.nonzero()
    x0, dx, y0, dy = plot.scale
    assert place["x"] + (columns.mean() + 0.5) / 2 == pytest.approx(x0 + 40 * dx, abs=3)
    bottom = place["height"] - place["y"]  # the picture is stored upside down
    assert bottom - (rows.mean() + 0.5) / 2 == pytest.approx(y0 + 60 * dy, abs=3)


def test_the_data_are_safe_in_a_page(clip, tmp_path):
    rows = rows_of(TABLE_ROWS + 1, clip)
    rows[0] = replace(rows[0], patient="</script><script>alert(1)</script>", note="a & b <i>")
    write_report(tmp_path / "report.html", rows=rows)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and 'href="ef_report.csv"' not in page  # there is none beside it
    content = json.loads(re.search(r'id="rows">(.*?)</script>', page, re.DOTALL).group(1))
    assert content["rows"][0][0] == rows[0].patient and content["rows"][0][-1][-1] == "a & b <i>"
