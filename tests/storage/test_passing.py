from typing import get_type_hints

from objserver.storage import passing
from objserver.storage.base import Change, Record, Reply, Store, Stored


def test_values_are_read_by_the_annotations_of_the_protocol():
    rows = get_type_hints(Store.snapshot)["return"]
    assert passing._reader(rows.__args__[0])([0, ["T", "a", None, [0, 1, 1, 3, b"s"]]]) == Stored(
        "T", "a", None, Record(0, 1, 1, 3, b"s")
    )
    names = {("T", "a"): Record(0, 1, 1, 3, None)}
    hint = dict[tuple[str, str], Record]
    assert passing._reader(hint)(passing._writer(hint)(names)) == names
    either = dict[tuple[str, str], Record | str]
    both = {("T", "a"): Record(0, 1, 1, 3, None), ("T", "b"): "who has it"}
    assert passing._reader(either)(passing._writer(either)(both)) == both


def test_a_change_comes_as_what_it_was():
    reply = Reply(b"c", 1, b"", 0, b"d", 0, None)
    signature = passing.METHODS["commit"]
    changes = [
        Change("T", "a", 0, 0, 1, 1, b"\x00", replies=[reply], acked=((b"c", 1),)),
        Change("T", "b", 0, 0, 1, 1, None),
    ]
    name, args, kwargs = passing.ormsgpack.unpackb(signature.encode([changes], {}))
    [[one, two]], _ = signature.arguments(args, kwargs)
    assert name == "commit"
    assert one == changes[0]._replace(acked=[(b"c", 1)], messages=[], timers=[])
    assert (type(one.replies[0]), type(one.acked[0])) == (Reply, tuple)
    assert two == changes[1]._replace(replies=[], acked=[], messages=[], timers=[])


def test_arguments_come_by_their_names_and_in_their_places():
    signature = passing.METHODS["keys"]
    _, args, kwargs = passing.ormsgpack.unpackb(signature.encode(["T", "a"], {"after": "b", "limit": None}))
    assert signature.arguments(args, kwargs) == (["T", "a"], {"after": "b", "limit": None})


def test_rows_travel_in_portions_and_a_bad_one_is_pointed_at():
    rows = [Stored("T", f"{n}", None, Record(0, 1, 1, 3, bytes(100_000))) for n in range(7)]
    parts = list(passing.portions(rows, passing.write_row))
    assert [len(part) for part in parts] == [2, 2, 2, 1]
    body = passing.ormsgpack.unpackb(passing.packed(parts[0]))
    assert [passing.read_row(row) for row in body] == rows[:2]
