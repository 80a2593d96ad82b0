"""The objects of `objserver demo`, and the processes that serve and use them.

Every role is a process of its own, `python -m objserver.cli.demo_objects ROLE ARGUMENT...`, because what the
demo shows (a killed server, acknowledged work that survives) means nothing inside one process.  A
client writes what it did as one JSON value to its standard output; `demo.py` puts the answers together.
"""

from __future__ import annotations

import json
import pathlib
import random
import re
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

from objserver.adapter import Persistent, ReadersWriter, expose, readonly
from objserver.client import Proxy
from objserver.errors import ConnectFailed, OutcomeUnknown
from objserver.references import NAMESERVER_ID, Reference, object_id
from objserver.server import ObjectServer

__all__ = ["STOCK_CLIENT", "Account", "Index", "Module", "location_of_modules", "postings"]

WORD = re.compile(r"\b[A-Za-z_]\w{2,}\b")
MODULES_ASKED = 4
"""Of the modules that contain a word, how many are asked on how many lines."""
WORDS_PER_MODULE = 8
"""Searches grow with what was indexed, so a small demo stays short."""
VERIFIED = 10
"""Words per client that are also looked for in the source text itself; a scan takes some 20 ms."""

STOCK_CLIENT = """
import json, sys, time
import Pyro5.api, Pyro5.errors
uri, seconds = sys.argv[1], float(sys.argv[2])
done = {"owner": "pyro5", "kind": "stock Pyro5", "acknowledged": 0, "unknown": 0, "latencies": []}
account = Pyro5.api.Proxy(uri)
def ready():
    # A connection that cannot be made carried no deposit, so only what fails later is in doubt.
    while account._pyroConnection is None:
        try:
            account._pyroBind()
        except Pyro5.errors.CommunicationError:
            time.sleep(0.02)
end = time.monotonic() + seconds
while time.monotonic() < end:
    ready()
    began = time.perf_counter()
    try:
        account.deposit(1)
    except Pyro5.errors.CommunicationError:
        done["unknown"] += 1
        account._pyroRelease()
    else:
        done["acknowledged"] += 1
        done["latencies"].append(round((time.perf_counter() - began) * 1e6))
ready()
done["balance"] = account.statement()
print(json.dumps(done))
"""
"""A client that knows nothing of objserver.  It is text because only objserver.pyro5 imports Pyro5."""


@expose
class Account:
    """A bank account; one for every owner, kept in the store."""

    def __init__(self) -> None:
        self.balance = 0

    def deposit(self, amount: int) -> int:
        """Add `amount`; the new balance."""
        self.balance += amount
        return self.balance

    @readonly
    def statement(self) -> int:
        """The balance."""
        return self.balance


class Module:
    """What one module of the standard library contains: word -> number of lines with it."""

    def __init__(self) -> None:
        self._packed = b""
        self._lines: dict[str, int] | None = None

    # The store sees the compressed text only; the dict is made when the first question comes.
    def __getstate__(self) -> dict[str, bytes]:
        return {"packed": self._packed}

    def __setstate__(self, state: dict[str, bytes]) -> None:
        self._packed = state["packed"]
        self._lines = None

    @expose
    def fill(self, lines: dict[str, int]) -> int:
        """Take the postings of the module; how many bytes they need in the store."""
        text = " ".join(f"{word} {count}" for word, count in sorted(lines.items()))
        self._packed = zlib.compress(text.encode(), 3)
        self._lines = lines
        return len(self._packed)

    @expose
    @readonly
    def lines(self, word: str) -> int:
        """On how many lines `word` stands."""
        lines = self._lines
        if lines is None:
            # Readers may do this at the same time; they all come to the same result.
            parts = zlib.decompress(self._packed).decode().split() if self._packed else []
            lines = self._lines = dict(zip(parts[::2], map(int, parts[1::2]), strict=True))
        return lines.get(word, 0)


class Index:
    """Knows which modules contain a word.  Shared by all clients: many readers or one writer."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._modules: dict[str, list[int]] = {}

    @expose
    def add(self, name: str, words: list[str]) -> None:
        """Note that module `name` contains `words`."""
        number = len(self._names)
        self._names.append(name)
        for word in words:
            self._modules.setdefault(word, []).append(number)

    @expose
    @readonly
    def modules_with(self, word: str) -> list[str]:
        """The names of the modules that contain `word`."""
        return [self._names[number] for number in self._modules.get(word, ())]

    @expose
    @readonly
    def size(self) -> tuple[int, int]:
        """How many modules and how many different words are known."""
        return len(self._names), len(self._modules)


def postings(text: str) -> dict[str, int]:
    """Every word of `text` with the number of lines it stands on."""
    lines: Counter[str] = Counter()
    for line in text.splitlines():
        lines.update(set(WORD.findall(line)))
    return dict(lines)


class _Timed:
    """Calls through here are counted and timed."""

    def __init__(self) -> None:
        self.latencies: list[int] = []

    def __call__(self, method: Callable[..., Any], *args: Any) -> Any:
        began = time.perf_counter()
        value = method(*args)
        self.latencies.append(round((time.perf_counter() - began) * 1e6))
        return value


# -- the roles ---------------------------------------------------------------------------------------


def serve(name_server: str, address: str, store: str, owners: str) -> None:
    """The object server.  Says its address on standard output when it can be called."""
    server = ObjectServer(address, store=store)
    server.register(Account, "Account", activation=Persistent())
    server.register(Module, "Module", activation=Persistent(), threading=ReadersWriter())
    server.register(Index, "Index", threading=ReadersWriter())
    names = ["Index", "Module", *(object_id("Account", owner) for owner in owners.split(","))]
    with server:
        with Proxy(f"PYRO:{NAMESERVER_ID}@{name_server}", timeout_s=10) as directory:
            for name in names:
                directory.register(name, f"PYRO:{name}@{server.address}")
        print(server.address, flush=True)
        server.serve_forever()


def bank(name_server: str, owner: str, seconds: str) -> dict[str, Any]:
    """Deposit 1 for so many seconds, whatever happens to the server, and settle what is in doubt."""
    timed = _Timed()
    acknowledged = unknown = 0
    with Proxy(f"PYRONAME:{object_id('Account', owner)}@{name_server}", timeout_s=10) as account:
        end = time.monotonic() + float(seconds)
        while time.monotonic() < end:
            try:
                timed(lambda: account.deposit(1))
                acknowledged += 1
            except OutcomeUnknown:
                unknown += 1
            except ConnectFailed:
                time.sleep(0.02)  # certainly not executed: the server is not back yet
        balance = _when_back(account.calling(timeout_s=10))
    return {
        "owner": owner,
        "kind": "objserver",
        "acknowledged": acknowledged,
        "unknown": unknown,
        "balance": balance,
        "latencies": timed.latencies,
    }


def _when_back(account: Proxy) -> int:
    give_up = time.monotonic() + 20
    while True:
        try:
            return int(account.statement())
        except (ConnectFailed, OutcomeUnknown):  # asking twice changes nothing
            if time.monotonic() > give_up:
                raise
            time.sleep(0.02)


def fill(name_server: str, listing: str, share: str, shares: str) -> dict[str, Any]:
    """Index every `shares`-th module of the listing, beginning with number `share`."""
    timed = _Timed()
    source = stored = 0
    modules = json.loads(pathlib.Path(listing).read_text())
    with Proxy(f"PYRONAME:Index@{name_server}", timeout_s=30) as index:
        where = location_of_modules(name_server)
        for name, path in modules[int(share) :: int(shares)]:
            data = pathlib.Path(path).read_bytes()
            lines = postings(data.decode(errors="replace"))
            with where(name) as module:
                stored += timed(module.fill, lines)
            timed(index.add, name, list(lines))
            source += len(data)
    return {"source": source, "stored": stored, "latencies": timed.latencies}


def search(name_server: str, listing: str, share: str, shares: str) -> dict[str, Any]:
    """Ask for words drawn from the sources; look some of them up in the source text as well."""
    timed = _Timed()
    modules = json.loads(pathlib.Path(listing).read_text())
    texts = {name: pathlib.Path(path).read_bytes().decode(errors="replace") for name, path in modules}
    chance = random.Random(int(share))
    words = []
    for name, _ in modules[int(share) :: int(shares)]:
        # sorted: the order of a set differs from run to run, and a demo should not
        found = sorted(set(WORD.findall(texts[name]))) or ["import"]
        words += chance.choices(found, k=WORDS_PER_MODULE)
    verify = set(chance.sample(range(len(words)), min(VERIFIED, len(words))))
    wrong: list[str] = []
    where = location_of_modules(name_server)
    proxies: dict[str, Proxy] = {}
    with Proxy(f"PYRONAME:Index@{name_server}", timeout_s=30) as index:
        for number, word in enumerate(words):
            names: list[str] = timed(index.modules_with, word)
            counts = {}
            for name in names if number in verify else names[:MODULES_ASKED]:
                if name not in proxies:
                    proxies[name] = where(name)
                counts[name] = timed(proxies[name].lines, word)
            if number in verify and counts != _scan(texts, word):
                wrong.append(word)
    for proxy in proxies.values():
        proxy.release()
    return {"words": len(words), "verified": len(verify), "wrong": wrong, "latencies": timed.latencies}


def location_of_modules(name_server: str) -> Callable[[str], Proxy]:
    """One question to the name server serves for all modules: only the key differs."""
    with Proxy(f"PYRO:{NAMESERVER_ID}@{name_server}", timeout_s=10) as directory:
        found = Reference.parse(str(directory.lookup("Module")))
    return lambda name: Proxy(Reference("PYRO", object_id("Module", name), found.location), timeout_s=30)


def _scan(texts: dict[str, str], word: str) -> dict[str, int]:
    """The truth, found another way than the index finds it."""
    whole = re.compile(rf"\b{re.escape(word)}\b")
    found = {}
    for name, text in texts.items():
        if word in text:
            found[name] = sum(1 for line in text.splitlines() if word in line and whole.search(line))
    return {name: count for name, count in found.items() if count}


def _main(role: str, *args: str) -> None:
    if role == "serve":
        serve(*args)
        return
    roles: dict[str, Callable[..., dict[str, Any]]] = {"bank": bank, "fill": fill, "search": search}
    print(json.dumps(roles[role](*args)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
