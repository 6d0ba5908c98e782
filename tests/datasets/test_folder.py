"""A folder of clips with a CSV."""

from __future__ import annotations

import numpy as np
import pytest

from echoplan.dataset import EchoDataset
from echoplan.datasets.folder import convert_folder
from echoplan.errors import EchoPlanError
from echoplan.imageio import Clip, write_clip, write_mask

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 12, 16), dtype=np.uint8)
CLIP = Clip(FRAMES, (0.2, 0.3), 25.0)
MASK = np.zeros_like(FRAMES)
MASK[:, 3:9, 4:12] = 1
MASK[:, 0, 0] = 2


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def write_csv(source, *rows, columns="case,patient,image"):
    (source / "cases.csv").write_text("\n".join([columns, *rows]) + "\n")


def convert(source, **settings):
    convert_folder(source, source.parent / "out", name="Mine", **settings)
    return EchoDataset.read(source.parent / "out")


def test_files_of_one_format_are_copied(source):
    write_clip(source / "x" / "one.avi", CLIP)
    write_clip(source / "two.avi", CLIP)
    write_mask(source / "one_mask.mha", MASK, like=CLIP)
    columns = "case,patient,image,label,view,spacing_row_mm,spacing_col_mm,ef_percent,split,ed_frame,es_frame"
    write_csv(source, "a,p1,x/one.avi,one_mask.mha,A2C,0.2,0.3,40,,0,3", "b,p2,two.avi,,,,,,test,,", columns=columns)
    dataset = convert(source)
    a, b = dataset.cases
    assert (a.image, a.label, b.image, b.label) == ("imagesTr/a.avi", "labelsTr/a.nii.gz", "imagesTs/b.avi", None)
    assert (dataset.folder / a.image).read_bytes() == (source / "x" / "one.avi").read_bytes()
    assert (a.patient, a.view, a.spacing_mm, a.ef_percent, a.ed_frame, a.es_frame) == (
        "p1",
        "A2C",
        (0.2, 0.3),
        40,
        0,
        3,
    )
    assert np.array_equal(dataset.load_mask(a), MASK == 1)
    assert dataset.description.image_ending == ".avi"


def test_mixed_formats_become_nifti(source):
    write_clip(source / "one.avi", CLIP)
    write_clip(source / "two", CLIP)
    write_clip(source / "three.mha", CLIP)
    write_csv(source, "a,p1,one.avi", "b,p2,two", "c,p3,three.mha")
    dataset = convert(source)
    assert [case.image for case in dataset.cases] == [f"imagesTr/{name}.nii.gz" for name in "abc"]
    clips = [dataset.load_clip(case) for case in dataset.cases]
    assert all(np.array_equal(clip.frames, FRAMES) for clip in clips)
    assert clips[0].spacing_mm is None and clips[1].spacing_mm is None  # still unknown, not 1 mm
    assert clips[2].spacing_mm == pytest.approx((0.2, 0.3)) and clips[2].frame_time_ms == pytest.approx(25)


def test_pairs_and_misleading_names_are_written_anew(source):
    write_clip(source / "one.mha", CLIP)
    (source / "one.mha").rename(source / "one.nii.gz")
    write_csv(source, "a,p1,one.nii.gz")
    dataset = convert(source)
    assert dataset.cases[0].image == "imagesTr/a.nii.gz"
    assert (dataset.folder / dataset.cases[0].image).read_bytes()[:2] == b"\x1f\x8b"


def test_dicom_leaves_its_header_behind(source):
    data = pytest.importorskip("pydicom.data")
    path = data.get_testdata_file("examples_ybr_color.dcm", download=False)
    if path is None:
        pytest.skip("pydicom's test files are not installed")
    import pydicom

    header = pydicom.dcmread(path)
    header.PatientName = "Doe^Jane"
    header.save_as(source / "one.dcm")
    write_csv(source, "a,p1,one.dcm")
    dataset = convert(source)
    assert dataset.cases[0].image.endswith(".nii.gz")
    assert dataset.load_clip(dataset.cases[0]).frames.shape == (30, 240, 320)
    import gzip

    assert b"Doe" not in gzip.decompress((dataset.folder / dataset.cases[0].image).read_bytes())


@pytest.mark.parametrize(
    ("mask", "named"),
    [(MASK[[2]], "2"), (MASK[[0, 2]], "0;2"), (MASK, "0;2"), (MASK[[2, 0]], "2;0"), (MASK, "2;0")],
    ids=str,
)
def test_few_labelled_frames(source, mask, named):
    mask = mask.copy()
    mask[0, 5, 5] = 0  # tells the frames apart
    write_clip(source / "one.mha", CLIP)
    write_mask(source / "m.nii.gz", mask, like=Clip(mask))
    write_csv(source, f"a,p1,one.mha,m.nii.gz,{named}", columns="case,patient,image,label,labelled_frames")
    dataset = convert(source)
    frames = [int(frame) for frame in named.split(";")]
    expected = np.full(FRAMES.shape, 255, np.uint8)
    expected[frames] = (mask[frames] if len(mask) == len(FRAMES) else mask) == 1
    assert np.array_equal(dataset.load_mask(dataset.cases[0]), expected)


def test_all_structures(source):
    write_clip(source / "one.mha", CLIP)
    write_mask(source / "m.nii.gz", MASK, like=CLIP)
    write_csv(source, "a,p1,one.mha,m.nii.gz", columns="case,patient,image,label")
    dataset = convert(source, structures="all", labels=["LV", "RV"])
    assert dataset.description.labels == {"background": 0, "LV": 1, "RV": 2}
    assert np.array_equal(dataset.load_mask(dataset.cases[0]), MASK)
    with pytest.raises(EchoPlanError, match=r"\[2\] without a name.*--labels"):
        convert(source, structures="all", labels=["LV"], overwrite=True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("gone.mha,,,", "no such file"),
        ("one.mha,gone.mha,,", "no such file"),
        ("one.mha,short.mha,,", r"\(2, 12, 16\) and the clip \(4, 12, 16\).*labelled_frames"),
        ("one.mha,short.mha,0,", r"\(2, 12, 16\), not 1 labelled frames"),
        ("one.mha,short.mha,0;4,", "no frame 4 in a clip of 4"),
        ("one.mha,narrow.mha,0;1;2;3,", r"\(4, 12, 15\)"),
        ("one.mha,binary.mha,,", r"\[0, 255\].*number the left ventricle 1"),
        ("one.mha,other.mha,,", r"\[0, 2\].*number the left ventricle 1"),
        ("one.mha,,,4", "ed_frame is 4, but the clip has 4 frames"),
        ("broken.mha,,,", "truncated or damaged"),
    ],
)
def test_broken_cases(source, row, message):
    write_clip(source / "one.mha", CLIP)
    masks = {
        "short": MASK[:2],
        "narrow": MASK[..., :15],
        "binary": (MASK == 1) * np.uint8(255),
        "other": (MASK == 2) * 2,
    }
    for name, mask in masks.items():
        write_mask(source / f"{name}.mha", mask, like=Clip(mask))
    (source / "broken.mha").write_bytes((source / "one.mha").read_bytes()[:-300])
    write_csv(source, "good,p0,one.mha,,,", f"a,p1,{row}", columns="case,patient,image,label,labelled_frames,ed_frame")
    failures: dict[str, str] = {}
    dataset = convert(source, failures=failures)
    assert [case.case for case in dataset.cases] == ["good"] and list(failures) == ["a"]
    with pytest.raises(EchoPlanError, match=message):
        raise EchoPlanError(failures["a"])


def test_a_spacing_in_the_csv_saves_a_bad_header(source):
    write_clip(source / "one.mha", CLIP)
    content = (source / "one.mha").read_bytes()
    (source / "one.mha").write_bytes(content.replace(b"ElementSpacing = 0.3", b"ElementSpacing = 0.0"))
    write_clip(source / "two.avi", CLIP)  # so that both are written anew
    write_csv(
        source, "a,p1,one.mha,0.2,0.3", "b,p2,two.avi,,", columns="case,patient,image,spacing_row_mm,spacing_col_mm"
    )
    dataset = convert(source)
    assert len(dataset.cases) == 2 and dataset.load_clip(dataset.cases[0]).spacing_mm == (0.2, 0.3)


def test_the_csv_itself(source):
    with pytest.raises(EchoPlanError, match=r"CSV is missing.*--csv"):
        convert(source)
    (source / "other.csv").write_text("case,image\na,one.mha\n")
    with pytest.raises(EchoPlanError, match="required columns are missing: patient"):
        convert(source, csv="other.csv")
    write_clip(source / "one.mha", CLIP)
    write_csv(source, "a,p1,one.mha")
    convert(source)
    with pytest.raises(EchoPlanError, match="--overwrite"):
        convert(source)


def test_a_csv_is_also_found_from_where_the_user_is(source, monkeypatch):
    write_clip(source / "one.mha", CLIP)
    write_csv(source, "a,p1,one.mha")
    monkeypatch.chdir(source.parent)
    assert [case.case for case in convert(source, csv="source/cases.csv").cases] == ["a"]


def test_a_conversion_stopped_before_its_last_file_is_done_again(source):
    write_clip(source / "one.mha", CLIP)
    write_csv(source, "a,p1,one.mha")
    dataset = convert(source)
    (dataset.folder / "dataset.json").unlink()  # as it is between the two files
    assert convert(source) == dataset


def test_a_conversion_of_nothing_leaves_no_dataset(source):
    write_csv(source, "a,p1,one.mha")
    with pytest.raises(EchoPlanError, match=r"no case could be converted; the first one, a: .*no such file"):
        convert(source)
    write_csv(source)
    with pytest.raises(EchoPlanError, match="no case is named"):
        convert(source)
    assert not (source.parent / "out").exists()
