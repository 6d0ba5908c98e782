import numpy as np
import pytest

from echoplan.errors import EchoPlanError
from echoplan.files import read_json, write_json
from echoplan.preprocessing import ClipStore, StoredCase, plan_geometry


def stored(case, patient="", **known):
    """What a store knows of a case, of which only some matters."""
    geometry = plan_geometry((60, 90), (0.4, 0.4), None, (32, 48))
    defaults = {"native_frames": 7, "dataset": "A", "crop": True, "geometry": geometry, "mean": 1.0, "std": 2.0}
    return StoredCase(case, patient, **{**defaults, **known})


@pytest.fixture
def filled(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (7, 32, 48), dtype=np.uint8)
    labels = np.full((7, 32, 48), 255, np.uint8)
    labels[[0, 4]] = rng.integers(0, 2, (2, 32, 48))
    store = ClipStore(tmp_path / "store")
    store.write(stored("a", "p1", mean=np.float32(3.5), labelled_frames=(0, 4), spacing_row_mm=0.5), frames, labels)
    store.write(stored("b", "p2"), frames[:1], None)
    return store, frames, labels


def test_gives_back_what_was_written(filled):
    store, frames, labels = filled
    assert np.array_equal(store.frames("a"), frames)
    assert np.array_equal(store.labels("a"), labels)
    assert store.frames("a").dtype == store.labels("a").dtype == np.uint8
    assert store.case("a") == stored("a", "p1", mean=3.5, labelled_frames=(0, 4))  # one spacing of two is none
    known = stored("c", "p3", spacing_row_mm=0.5, spacing_col_mm=0.4, ed_frame=3, esv_ml=41.0, source={"row": 1})
    store.write(known, frames, labels)
    assert store.case("c") == known
    assert store.cases() == ["a", "b", "c"]
    assert store.has("a") and not store.has("d")


def test_picks_frames_in_any_order_and_repeats_them(filled):
    store, frames, labels = filled
    for indices in ([4, 0, 4], np.array([6]), [], range(7)):
        assert np.array_equal(store.frames("a", indices), frames[list(indices)])
        assert np.array_equal(store.labels("a", indices), labels[list(indices)])
    with pytest.raises(IndexError, match="frame 7 of 7"):
        store.frames("a", [7])
    with pytest.raises(IndexError):
        store.frames("a", [-1])


def test_no_labels_reads_as_ignored(filled):
    store, _, _ = filled
    assert (store.labels("b") == 255).all() and store.labels("b").shape == (1, 32, 48)
    assert store.labels("b", [0, 0]).shape == (2, 32, 48)


def test_writing_again_replaces_everything(filled):
    store, frames, _ = filled
    store.write(stored("a", "p9"), frames[:2], None)
    assert store.frames("a").shape == (2, 32, 48)
    assert (store.labels("a") == 255).all()
    assert store.case("a") == stored("a", "p9")


def test_nothing_partial_is_left_and_a_case_without_its_json_is_not_there(filled):
    store, _, _ = filled
    assert sorted(path.name for path in store.folder.iterdir()) == [
        "a.b2nd",
        "a.json",
        "a_seg.b2nd",
        "b.b2nd",
        "b.json",
    ]
    (store.folder / "a.json").unlink()
    assert not store.has("a") and store.cases() == ["b"]


def test_float16_is_kept(tmp_path):
    frames = np.random.default_rng(0).random((3, 16, 16)).astype(np.float16)
    store = ClipStore(tmp_path)
    store.write(stored("x"), frames, None)
    assert np.array_equal(store.frames("x", [2, 1]), frames[[2, 1]])


def test_errors_name_the_file(filled):
    store, frames, _ = filled
    with pytest.raises(EchoPlanError, match="not preprocessed"):
        store.frames("nobody")
    with pytest.raises(EchoPlanError, match="not preprocessed"):
        store.case("nobody")
    (store.folder / "a.b2nd").write_bytes(b"garbage" * 50)
    with pytest.raises(EchoPlanError, match=r"a\.b2nd"):
        store.frames("a")
    with pytest.raises(EchoPlanError, match="store"):
        store.write(stored("store"), frames, None)
    with pytest.raises(ValueError, match="shape"):
        store.write(stored("c"), frames, frames[:2])


def test_no_flipped_byte_gives_other_pixels(filled):
    store, frames, labels = filled
    rng = np.random.default_rng(1)
    for name, read, written in (("a.b2nd", store.frames, frames), ("a_seg.b2nd", store.labels, labels)):
        content = (store.folder / name).read_bytes()
        places = [*range(200), *rng.integers(200, len(content), 100)]  # the header, and anywhere
        noticed = 0
        for place in places:
            damaged = bytearray(content)
            damaged[place] ^= rng.integers(1, 256)
            (store.folder / name).write_bytes(damaged)
            try:
                found = read("a", None if place % 2 else range(7))
            except EchoPlanError as error:
                assert name in str(error) and "remove a.json" in str(error)
                noticed += 1
            else:
                assert found.dtype == written.dtype and np.array_equal(found, written)
        assert noticed > len(places) // 2
        (store.folder / name).write_bytes(content)


def test_a_store_without_checksums_is_refused(filled):
    store, _, _ = filled
    older = read_json(store.folder / "a.json")
    del older["arrays"]
    write_json(store.folder / "a.json", older)
    for read in (store.case, store.frames, store.labels):
        with pytest.raises(EchoPlanError, match=r"earlier EchoPlan.*run echoplan_preprocess"):
            read("a")
