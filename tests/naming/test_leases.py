"""When a lease is over, second by second."""

from __future__ import annotations

from objserver.naming.leases import Lease, LeaseWatch


def watched(watch: LeaseWatch, begin: float, end: float) -> None:
    """Somebody looks every half second."""
    for step in range(int((end - begin) * 2) + 1):
        watch.look(begin + step / 2)


def test_a_lease_is_over_when_its_time_has_passed_without_renewal() -> None:
    watch = LeaseWatch()
    watch.look(0.0)
    watch.told({"a": (None, Lease(5.0)), "b": (None, Lease(8.0))})
    watched(watch, 0.0, 4.5)
    assert watch.over() == []
    watched(watch, 5.0, 5.0)
    assert watch.over() == ["a"]


def test_a_renewal_begins_it_anew_and_an_end_ends_it() -> None:
    watch = LeaseWatch()
    watch.look(0.0)
    watch.told({"a": (None, Lease(5.0)), "b": (None, Lease(5.0))})
    watched(watch, 0.0, 4.0)
    watch.told({"a": (Lease(5.0), Lease(5.0, renewals=1)), "b": (Lease(5.0), None)})
    watched(watch, 4.5, 8.5)
    assert (watch.over(), len(watch)) == ([], 1)
    watched(watch, 9.0, 9.0)
    assert watch.over() == ["a"]


def test_time_in_which_nobody_looked_does_not_count() -> None:
    watch = LeaseWatch()
    watch.look(0.0)
    watch.told({"a": (None, Lease(5.0))})
    watch.look(1000.0)
    assert watch.over() == []
    watched(watch, 1000.5, 1004.0)
    assert watch.over() == ["a"]
