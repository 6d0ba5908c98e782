from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from echoplan.evaluation import CaseMask, make_overlays, measure_case, measure_patients, write_report

SPACING = (0.4, 0.8)
VOID = {"meta", "img", "br", "line", "circle", "polyline", "path", "use", "rect", "link"}


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
        mask = np.stack([half_ellipsoid(*size, SPACING, shape=(280, 150))[0] for size in sizes])
        made.append(CaseMask(f"case<{number}>", mask, spacing_mm=SPACING, frame_time_ms=50.0,
                             reference_ef_percent=60.0 - number, reference_edv_ml=90.0 + number))  # fmt: skip
    made.append(CaseMask("broken", np.zeros((2, 30, 30), np.uint8), reference_ef_percent=55.0))
    return made


def report(path, cases, **more):
    measurements = [measure_case(case) for case in cases]
    rows = measure_patients(cases, measurements=measurements)
    overlays = [
        overlay
        for case, measured in zip(cases, measurements, strict=True)
        for overlay in make_overlays(measured, case.mask * 90, case.mask, case.spacing_mm)
    ]
    write_report(path, rows=rows, measurements=measurements, overlays=overlays, **more)
    return path.read_text(encoding="utf-8")


def test_a_whole_page(cases, tmp_path):
    page = report(tmp_path / "report.html", cases, title="A & B", details={"Model": "<m>"})
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert "A &amp; B" in page
    assert "case&lt;0&gt;" in page
    assert "<m>" not in page
    assert page.count('<svg class="curve"') == 5
    assert page.count("data:image/jpeg") == 8
    assert "no frame of the clip has a cavity" in page
    assert page.count("regression:") == 2  # EF and EDV have references, ESV has none
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    clip_paths = set(re.findall(r"url\(#([^)]+)\)", page))
    assert clip_paths <= set(ids)


def test_without_references_and_without_patients(cases, tmp_path):
    plain = [CaseMask(case.case, case.mask, spacing_mm=SPACING) for case in cases[:1]]
    page = report(tmp_path / "a.html", plain)
    assert "Agreement" not in page
    assert "Reference EF" not in page
    assert "frame</text>" in page
    assert "Patients" in report(tmp_path / "b.html", [])


def test_overlays_keep_the_hearts_proportions_and_mark_it(cases):
    case = cases[0]
    ed, es = make_overlays(measure_case(case), case.mask * 90, case.mask, SPACING)
    assert (ed.phase, ed.frame, es.phase, es.frame) == ("end-diastole", 0, "end-systole", 2)
    picture = np.asarray(Image.open(io.BytesIO(ed.jpeg))).astype(int)
    height, width = picture.shape[:2]
    assert height / width == pytest.approx(280 * 0.4 / (150 * 0.8), abs=0.02)
    orange = (picture[..., 0] - picture[..., 2] > 80).nonzero()
    extent = np.ptp(orange[0]) / height * 280 * 0.4, np.ptp(orange[1]) / width * 150 * 0.8
    assert extent == pytest.approx((80, 46), abs=2)
    assert len(base64.b64encode(ed.jpeg)) < 30_000
