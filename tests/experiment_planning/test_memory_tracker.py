import pytest
import torch

from echoplan.experiment_planning.memory import MemoryTracker, ShapeMemo

ATEN = torch.ops.aten


def meta(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="meta")


@pytest.fixture
def counted():
    """A memo, and how often each operation was really called through it."""
    memo, calls = ShapeMemo(), []

    def run(func, *args, **kwargs):
        class Counting:
            _schema = func._schema

            def __call__(self, *args, **kwargs):
                calls.append(func)
                return func(*args, **kwargs)

            def __hash__(self):
                return hash(func)

            def __eq__(self, other):
                return True

        return memo.call(Counting(), args, kwargs)

    run.calls = calls
    return run


def described(tensor):
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device.type


def test_a_known_answer_has_the_form_of_the_first_and_memory_of_its_own(counted):
    first = counted(ATEN.add.Tensor, meta(2, 3), meta(3))
    again = counted(ATEN.add.Tensor, meta(2, 3), meta(3))
    assert described(first) == described(again) and len(counted.calls) == 1
    assert first.untyped_storage()._cdata != again.untyped_storage()._cdata


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((meta(2, 3), 1), (meta(2, 3), 1.5)),
        ((meta(2, 3, dtype=torch.int64), 1), (meta(2, 3, dtype=torch.int64), 1.0)),  # integers stay, or become floats
        ((meta(2, 3), 1), (meta(3, 2), 1)),
        ((meta(2, 3), 1), (meta(3, 2).t(), 1)),
        ((meta(2, 3), 1), (meta(2, 3, dtype=torch.bfloat16), 1)),
    ],
)
def test_what_differs_is_asked_anew(counted, one, other):
    for args in (one, other):
        assert described(counted(ATEN.mul.Scalar, *args)) == described(ATEN.mul.Scalar(*args))
    assert len(counted.calls) == 2


def test_views_share_memory_each_time(counted):
    for _ in range(2):
        given = meta(4, 6)
        for func, args in ((ATEN.view.default, ([24],)), (ATEN._unsafe_view.default, ([24],))):
            assert counted(func, given, *args).untyped_storage()._cdata == given.untyped_storage()._cdata


def test_changes_in_place_return_what_was_given(counted):
    for _ in range(3):
        given = meta(4)
        assert counted(ATEN.add_.Tensor, given, meta(4)) is given
    assert len(counted.calls) == 1


def test_a_change_of_size_in_place_is_made_each_time(counted):
    for _ in range(2):
        given = meta(4)
        counted(ATEN.resize_.default, given, [9])
        assert given.shape == (9,)


def test_several_answers(counted):
    for _ in range(2):
        mean, spread = counted(ATEN.var_mean.correction, meta(5, 7), [1], correction=0)
        assert mean.shape == spread.shape == (5,)
    assert len(counted.calls) == 1


def test_real_tensors_are_computed(counted):
    assert [float(counted(ATEN.add.Tensor, torch.tensor(value), torch.tensor(1.0))) for value in (1.0, 2.0)] == [2, 3]


def test_the_tracker_counts_a_storage_once_and_forgets_it_when_it_is_freed():
    tracker = MemoryTracker()
    with tracker:
        first = torch.zeros(1024)  # 4096 bytes
        view = first[:10]
        assert tracker.live == 4096
        second = torch.zeros(100)  # 400 bytes, in a block of 512
        assert tracker.live == 4096 + 512
        del first, view
        assert tracker.live == 512
        del second
    assert tracker.live == 0 and tracker.peak == 4096 + 512
