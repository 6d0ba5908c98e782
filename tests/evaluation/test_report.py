"""report.html: what is written. test_report_browser.py looks at it as people do."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from masked import Masked, measured

from echoplan.evaluation import make_film, measure_patients, subgroup_agreement, write_report
from echoplan.evaluation.report import formats
from echoplan.evaluation.report import page as report
from echoplan.evaluation.report.figures import area_curve, bland_altman, ef_distribution, scatter
from echoplan.evaluation.report.formats import reasons_of

SPACING = (0.8, 0.8)
VOID = {"meta", "img", "br", "input", "line", "circle", "polyline", "path", "use", "rect", "link"}


class Balance(HTMLParser):
    """Counts tags that are opened and not closed."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def cases(half_ellipsoid):
    made = []
    for number in range(4):
        sizes = [(80, 46), (70, 38), (64 + number, 30)]
        mask = np.stack([half_ellipsoid(*size, SPACING, shape=(140, 150))[0] for size in sizes])
        made.append(Masked(f"case<{number}>", mask, view="A4C", spacing_mm=SPACING, frame_time_ms=50.0,
                             ef_percent=60.0 - number, edv_ml=90.0 + number))  # fmt: skip
    made.append(Masked("broken", np.zeros((2, 30, 30), np.uint8), ef_percent=55.0))
    return made


@pytest.fixture(scope="module")
def measurements(cases):
    return [measured(case) for case in cases]


@pytest.fixture(scope="module")
def films(cases, measurements):
    return [
        make_film(measured, case.mask * 90, case.mask, case.spacing_mm)
        for case, measured in zip(cases, measurements, strict=True)
    ]


@pytest.fixture
def write(tmp_path, cases, measurements, films):
    """write(cases=5, ...) -> the first page of a report of so many cases."""

    def made(count=5, *, rows=None, **more):
        path = tmp_path / "report.html"
        if rows is None:
            rows = measure_patients(measurements[:count])
        write_report(path, rows=rows, measurements=measurements[:count], **{"films": films[:count], **more})
        return path.read_text(encoding="utf-8")

    return made


@pytest.fixture(scope="module")
def page(tmp_path_factory, cases, measurements, films):
    """A report of all cases."""
    path = tmp_path_factory.mktemp("whole") / "report.html"
    rows = measure_patients(measurements)
    write_report(path, rows=rows, measurements=measurements, films=films, title="A & B", details={"Model": "<m>"})
    return path.read_text(encoding="utf-8")


def test_a_whole_page(page):
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert "A &amp; B" in page
    assert "case&lt;0&gt;" in page
    assert "<m>" not in page
    assert page.count('class="curve"') == 5
    assert page.count('class="player"') == 5
    assert page.count('src="data:image/webp') == 8
    assert "no frame of the clip has a cavity" in page
    assert page.count("regression:") == 2  # EF and EDV have references, ESV has none
    assert page.count('data-measure="edv_ml"') == 2 and 'data-measure="esv_ml"' not in page


def test_nothing_is_loaded_from_anywhere(page):
    assert not re.search(
        r"""(src|href|url|@import)\s*[=(]?\s*["']?(https?:)?//""", re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    )
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert page.count("<script>") == 2 and page.count("<style>") == 1


def test_ids_are_unique_and_what_is_pointed_at_is_there(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', page))
    assert used and used <= set(ids)


def test_without_references_and_without_patients(cases, measurements, write):
    (row,) = measure_patients(measurements[:1])
    alone = replace(row, reference_ef_percent=None, reference_edv_ml=None)
    page = write(1, rows=[alone])
    assert "Agreement" not in page
    assert "Ref. EF" not in page
    assert '<figure class="panel"' not in page and "mean ejection fraction" not in page  # of one value
    page = write(1, rows=[replace(alone, patient=str(number)) for number in range(5)])
    assert page.count('<figure class="panel"') == 1 and "distribution of EF" in page
    page = write(1, rows=[row])
    assert "Agreement" not in page and "Ref. EF" in page
    assert "Patients" in write(0)


def test_what_is_said_of_one_clip_stands_beside_it_alone(measurements, write):
    (row,) = measure_patients(measurements[:1])
    doubts = f"{row.cases}: the base is cut off; two views differ"
    rows = [replace(row, quality="check", quality_reasons=doubts, note="the base is cut off; irregular rhythm")]
    page = write(1, rows=rows)
    assert page.count("the base is cut off") == 1 and "Look closer: the base is cut off; two views differ" in page
    assert "This clip, single plane" not in page and "Patient, single plane" in page
    other = replace(measurements[0], case=replace(measurements[0].case, case="other"))
    assert reasons_of(replace(rows[0], cases=f"{row.cases};other"), other.name) == "two views differ"


def test_the_page_gives_its_plots_their_colours(page):
    styled = re.search(r"<style>(.*?)</style>", page, re.S).group(1)
    dark = styled[styled.index("prefers-color-scheme: dark") :].partition("\n}")[0]
    names = set(re.findall(r"var\(--(\w+), #", page))
    assert {"ink", "soft", "ed", "es"} <= names
    assert [name for name in names if f"--{name}:" not in dark] == []


def test_doubts_and_intervals_are_said_in_words(cases, measurements, write, page):
    assert page.count(" data-check") == 2  # the row and the clip of the patient that was not measured
    rows = measure_patients(measurements)
    rows = [replace(row, quality="no warning", quality_reasons="", interval_coverage_percent=90.0) for row in rows]
    rows[1] = replace(rows[1], quality="check", quality_reasons="the <area> is ragged")
    rows[0] = replace(rows[0], ef_low_percent=51.04, ef_high_percent=63.96, ef_fold_sd_percent=1.25)
    page = write(rows=rows)
    assert page.count(" data-check") == 4
    assert "Look closer: the &lt;area&gt; is ragged" in page
    assert re.search(r"<b>1</b><span>to check by eye</span>", page)
    assert (
        "(90 % interval 51.0 to 64.0), SD over the folds 1.2" in page
        and '<div class="small">51.0 to 64.0</div>' in page
    )


def test_subgroups_are_those_of_the_rows(cases, measurements, page):
    rows = measure_patients(measurements)
    table = page[page.index('<table class="subgroups">') :]
    lines = re.findall(r"<tr><th[^>]*>([^<]+)</th>((?:<td>[^<]*</td>)+)</tr>", table[: table.index("</table>")])
    expected = subgroup_agreement(rows)
    assert len(lines) == len(expected) > 0
    for (_, cells), group in zip(lines, expected, strict=True):
        n, _, bias, *_ = re.findall(r"<td>([^<]*)</td>", cells)
        assert int(n) == group["n"]
        assert float(bias.replace("−", "-")) == pytest.approx(group["bias"], abs=0.05)


def test_many_clips_go_on_pages_and_old_pages_go(write, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "CASES_A_PAGE", 2)
    first = write()
    pages = sorted(file.name for file in tmp_path.iterdir())
    assert pages == ["report.html", "report_2.html", "report_3.html"]
    second, third = ((tmp_path / name).read_text() for name in pages[1:])
    assert [page.count("<article") for page in (first, second, third)] == [2, 2, 1]
    assert 'href="report_2.html#case-3"' in first and 'href="#case-1"' in first
    assert 'rel="prev" href="report.html"' in second and 'rel="next" href="report_3.html#clips"' in second
    assert 'class="patients"' in first and 'class="patients"' not in second
    write(2)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_beyond_the_limits_clips_are_counted_and_not_shown(write, films, monkeypatch):
    monkeypatch.setattr(report, "PICTURES", 3)
    page = write(films=[replace(film, sheet=None) for film in films])
    assert page.count("<article") == 3 and "2 more clips are in the table" in page
    assert 'class="player"' not in page and page.count('src="data:image/webp') == 6


def test_numbers_never_show_a_negative_zero():
    assert formats.number(-0.04) == "0.0" and formats.number(-0.06) == "−0.1" and formats.number(None) == "–"


def test_the_curves_scale_places_frames_on_the_curve(measurements):
    measured = measurements[0]
    plot = area_curve(measured)
    x0, dx, y0, dy = plot.scale
    path = re.search(r'class="area"> <path d="([^"]+)"', plot.svg).group(1)
    places = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", path), float)
    np.testing.assert_allclose(places[:, 0], x0 + dx * np.arange(3), atol=0.01)
    np.testing.assert_allclose(places[:, 1], y0 + dy * measured.area / 100, atol=0.01)
    assert f'data-scale="{x0:.6g} ' in plot.svg and dy < 0


def test_a_curve_of_one_frame_or_nothing_is_drawn_all_the_same(half_ellipsoid):
    mask = half_ellipsoid(80, 46, SPACING)[0][None]
    for case in (Masked("a", mask), Masked("b", mask * 0)):
        svg = area_curve(measured(case)).svg
        assert "NaN" not in svg and "frame</text>" in svg and "px</text>" in svg  # neither time nor spacing is known


def test_plots_tell_their_lines_and_points_apart():
    predicted, reference = [50.0, 60.0, 72.0], [52.0, 61.0, 68.0]
    plot = scatter(predicted, reference, name="EF", unit="%", intervals=[(45, 55), None, (60, 80)])
    assert plot.svg.count("<use") >= 3 and "stroke-dasharray" in plot.svg and "identity" in plot.svg
    assert "regression" not in scatter([50.0], [52.0], name="EF", unit="%").svg
    plot = bland_altman(predicted, reference, name="EF", unit="%")
    assert "bias" in plot.svg and "1.96 SD" in plot.svg
    assert "1.96 SD" not in bland_altman([50.0], [52.0], name="EF", unit="%").svg
    assert "reference" in ef_distribution(predicted, reference).svg
    assert "reference" not in ef_distribution(predicted).svg
