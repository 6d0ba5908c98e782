import numpy as np
import pytest

from echoplan.errors import EchoPlanError
from echoplan.preprocessing import ClipStore


@pytest.fixture
def filled(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (7, 32, 48), dtype=np.uint8)
    labels = np.full((7, 32, 48), 255, np.uint8)
    labels[[0, 4]] = rng.integers(0, 2, (2, 32, 48))
    store = ClipStore(tmp_path / "store")
    store.write("a", frames, labels, {"patient": "p1", "mean": np.float32(3.5)})
    store.write("b", frames[:1], None, {"patient": "p2"})
    return store, frames, labels


def test_gives_back_what_was_written(filled):
    store, frames, labels = filled
    assert np.array_equal(store.frames("a"), frames)
    assert np.array_equal(store.labels("a"), labels)
    assert store.frames("a").dtype == store.labels("a").dtype == np.uint8
    assert store.properties("a") == {"patient": "p1", "mean": 3.5}
    assert store.cases() == ["a", "b"]
    assert store.has("a") and not store.has("c")


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
    store.write("a", frames[:2], None, {"patient": "p9"})
    assert store.frames("a").shape == (2, 32, 48)
    assert (store.labels("a") == 255).all()
    assert store.properties("a") == {"patient": "p9"}


def test_nothing_partial_is_left_and_a_case_without_properties_is_not_there(filled):
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
    store.write("x", frames, None, {})
    assert np.array_equal(store.frames("x", [2, 1]), frames[[2, 1]])


def test_errors_name_the_file(filled):
    store, frames, _ = filled
    with pytest.raises(EchoPlanError, match="not preprocessed"):
        store.frames("nobody")
    with pytest.raises(EchoPlanError, match="not preprocessed"):
        store.properties("nobody")
    (store.folder / "a.b2nd").write_bytes(b"garbage" * 50)
    with pytest.raises(EchoPlanError, match=r"a\.b2nd"):
        store.frames("a")
    with pytest.raises(EchoPlanError, match="store"):
        store.write("store", frames, None, {})
    with pytest.raises(ValueError, match="shape"):
        store.write("c", frames, frames[:2], {})
