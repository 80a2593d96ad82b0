"""Codecs are used by many threads at once."""

import ast

import pytest

from objserver import errors
from objserver.codecs import Codecs
from objserver.settings import Limits


def test_what_other_threads_do_to_the_parser_harms_no_call(monkeypatch):
    """CPython's gh-106905: another thread's parsing makes an innocent text fail, until one tries again."""
    real, failures = ast.parse, [2]

    def disturbed(text, mode):
        if failures[0]:
            failures[0] -= 1
            raise SystemError("AST constructor recursion depth mismatch (before=36, after=90)")
        return real(text, mode=mode)

    monkeypatch.setattr(ast, "parse", disturbed)
    serpent = Codecs(Limits()).serpent
    assert serpent.decode(b"[1, {'a': 2.5}]") == [1, {"a": 2.5}]
    failures[0] = 10**6
    with pytest.raises(errors.SerializeError, match="AST constructor"):
        serpent.decode(b"[1]")
