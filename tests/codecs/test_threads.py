"""Codecs are used by many threads at once."""

import ast
import threading

from objserver.codecs import Codecs
from objserver.settings import Limits


def test_threads_may_parse_serpent_together():
    """CPython's gh-106905: threads disturbed each other's parsing, and an innocent call was refused."""
    codec, payload = Codecs(Limits()).serpent, b"[" * 40 + b"{'a': [1, 2.5, 'x']}," * 200 + b"]" * 40
    stop, problems = threading.Event(), []

    def disturb():
        while not stop.is_set():
            try:
                ast.parse("[" * 60 + "1," * 500 + "]" * 60)
            except SystemError:
                pass

    def decode():
        try:
            for _ in range(60):
                codec.decode(payload)
        except Exception as problem:
            problems.append(problem)

    other = threading.Thread(target=disturb)
    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in (other, *threads):
        thread.start()
    for thread in threads:
        thread.join(60)
    stop.set()
    other.join(60)
    assert problems == []
