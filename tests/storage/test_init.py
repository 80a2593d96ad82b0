import re
import subprocess
import sys

import pytest

from objserver import errors, storage


def test_importing_the_room_does_not_load_sqlalchemy():
    code = "import sys, objserver.storage; sys.exit(not {'sqlalchemy', 'psycopg'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("url", ["mysql://me:secret@host/db", "mysql://x", "objects.db", ""])
def test_unknown_url_names_what_is_supported(url):
    with pytest.raises(errors.StoreError, match=r"sqlite:///path.*postgresql://user:password@host") as caught:
        storage.open_store(url)
    assert "secret" not in str(caught.value)


def test_a_bare_path_is_answered_with_the_url_that_was_meant():
    for path, url in (("bank.db", "sqlite:///bank.db"), ("/var/bank.db", "sqlite:////var/bank.db")):
        with pytest.raises(errors.StoreError, match=re.escape(f"did you mean {url}?")):
            storage.open_store(path)


@pytest.mark.parametrize("url", ["sqlite:", "sqlite://objects.db", "sqlite:///", "sqlite:///x.db?mode=ro"])
def test_url_without_a_plain_file_is_refused(url):
    with pytest.raises(errors.StoreError, match="names no file"):
        storage.open_store(url)


def test_relative_and_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url in ("sqlite:///one.db", f"sqlite:///{tmp_path}/two.db"):
        store = storage.open_store(url)
        assert store.url == url
        store.close()
    assert {"one.db", "two.db"} <= {p.name for p in tmp_path.iterdir()}


def test_without_psycopg_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for module in ("postgres", "postgres_cluster", "postgres_link"):
        monkeypatch.delitem(sys.modules, f"objserver.storage.{module}", raising=False)
    with pytest.raises(errors.StoreError, match=r"pip install 'objserver\[postgres\]'"):
        storage.open_store("postgresql://me:secret@host/db")
