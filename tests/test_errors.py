"""The error for people, as it reads."""

from __future__ import annotations

import pickle

import pytest

from echoplan.errors import EchoPlanError


@pytest.mark.parametrize(
    ("remedy", "end"),
    [
        ("mend it", "What to do: mend it."),
        ("give the folder that holds patient0001, ...", "What to do: give the folder that holds patient0001, ..."),
        ("did you mean epochs?", "What to do: did you mean epochs?"),
        ("type one of:\n  echoplan_train A 0\n  echoplan_train B 0", "\n  echoplan_train B 0"),  # may be copied whole
    ],
)
def test_what_to_do_ends_as_it_should(remedy, end):
    assert str(EchoPlanError("it is broken.", file="a.avi", remedy=remedy)).endswith(end)


def test_it_survives_the_way_between_processes():
    error = EchoPlanError("it is broken", file="a.avi", remedy="mend it", fatal=True)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.fatal) == (str(error), True)
