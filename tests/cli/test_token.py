"""`objserver token`: from a key to a token that can do little."""

import json
import stat
import time

import pytest
from click.testing import CliRunner

from objserver.cli.main import main
from objserver.security import RootKeys


def run(*args, input=None, code=0):
    done = CliRunner().invoke(main, ["token", *args], input=input)
    assert done.exit_code == code, done.output
    return done.stdout.strip() if code == 0 else done.stderr


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys.txt"
    run("key", str(path), "--id", "k1")
    return path


def test_a_key_is_for_its_owner_alone(keys):
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    assert RootKeys.load(keys).ids == ["k1"]


def test_a_token_is_made_narrowed_and_believed(keys):
    text = run("mint", "alice", "--role", "teller", "--for", "8h", "--keys", str(keys))
    narrowed = run(
        "attenuate", "--object", "Account/alice", "--method", "deposit", "--rate", "5", "--for", "30m",
        input=text + "\n",
    )  # fmt: skip
    principal = RootKeys.load(keys).verify(narrowed, time.time())
    assert (principal.name, principal.roles) == ("alice", {"teller"})
    assert principal.expires_at < time.time() + 1801
    assert principal.restrictions.objects == (("Account/alice",),)
    assert principal.restrictions.methods == (("deposit",),)
    shown = run("show", input=narrowed)
    assert "principal  alice\nroles      teller\nkey        k1\nexpires" in shown
    assert "only       objects Account/alice" in shown
    assert narrowed[11:] not in shown
    fields = json.loads(run("show", "--json", input=narrowed))
    assert fields["caveats"][0] == ["objects", ["Account/alice"]]


def test_the_last_key_makes_tokens_and_the_others_are_still_believed(keys):
    old = run("mint", "alice", "--for", "8h", "--keys", str(keys))
    run("key", str(keys), "--id", "k2")
    new = run("mint", "alice", "--for", "8h", "--keys", str(keys), "--object", "A")
    assert json.loads(run("show", "--json", input=new))["key_id"] == "k2"
    for text in (old, new):
        assert RootKeys.load(keys).verify(text, time.time()).name == "alice"


def test_what_is_wrong_is_said_without_the_secret(keys, tmp_path):
    text = run("mint", "alice", "--for", "8h", "--keys", str(keys))
    assert "damaged" in run("show", input=text[:-9], code=1)
    assert "is no time like 30m" in run("mint", "a", "--for", "soon", "--keys", str(keys), code=2)
    assert "there is no key 'k9'" in run(
        "mint", "a", "--for", "1h", "--keys", str(keys), "--key-id", "k9", code=2
    )
    assert "nothing is taken away" in run("attenuate", input=text, code=2)
    assert "has a key 'k1' already" in run("key", str(keys), "--id", "k1", code=1)
    assert "is no id" in run("key", str(keys), "--id", "a b", code=2)
    assert "cannot be read" in run("mint", "a", "--for", "1h", "--keys", str(tmp_path / "no"), code=1)
    secret = keys.read_text().split()[1]
    keys.write_text(f"k1 {secret[:20]}\n")
    said = run("mint", "a", "--for", "1h", "--keys", str(keys), code=1)
    assert "line 1: each has an id of its own" in said
    assert secret[:20] not in said
