"""Names from the wire in logs."""

import logging

import pytest

from objserver.logs import escaped, escaping


class Rude:
    def __str__(self):
        raise ValueError("no text")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain \u00e4\u4e16", "plain \u00e4\u4e16"),
        ("a\nERROR b", "a\\nERROR b"),
        ("\x1b[2J\x00\r", "\\x1b[2J\\x00\\r"),
        ("\u2028\u202e\ud800", "\\u2028\\u202e\\ud800"),
    ],
)
def test_what_is_not_printable_is_escaped(text, shown):
    assert escaped(text) == shown


def test_the_arguments_of_a_message_are_escaped_and_numbers_stay_numbers(caplog):
    log = escaping(logging.getLogger("objserver.test"))
    with caplog.at_level(logging.INFO):
        log.info("%s and %r of %d in %.1f s: %s", "a\nb", "c\nd", 5, 1.25, ValueError("e\nf"))
        log.info("%s", Rude())
        log.info("nothing")
    assert [record.getMessage() for record in caplog.records] == [
        "a\\nb and 'c\\\\nd' of 5 in 1.2 s: e\\nf", "<Rude>", "nothing",
    ]  # fmt: skip


def test_a_logger_is_made_to_escape_once():
    log = logging.getLogger("objserver.test")
    assert escaping(log) is escaping(log) is log
    assert len(log.filters) == 1
