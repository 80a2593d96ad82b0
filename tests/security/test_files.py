"""Keys and credentials in files."""

import logging

import pytest

from objserver import errors
from objserver.security import AcceptedKey, SharedKey, Token
from objserver.security.files import credentials_text, keys_text, load_credentials, load_keys

SECRET = bytes(range(32))


def written(tmp_path, text, mode=0o600):
    path = tmp_path / "file.toml"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_what_is_written_can_be_read(tmp_path):
    path = written(tmp_path, keys_text("lab-2026", SECRET, "lab") + keys_text('odd "key"', SECRET, ""))
    assert load_keys(path) == {
        "lab-2026": AcceptedKey(SECRET.hex(), "lab"),
        'odd "key"': AcceptedKey(SECRET.hex()),
    }
    assert load_credentials(written(tmp_path, credentials_text("lab", SECRET, "ann"))) == SharedKey(
        "lab", SECRET.hex(), "ann"
    )


def test_keys_have_roles(tmp_path):
    path = written(tmp_path, keys_text("lab", SECRET, "") + 'roles = ["reader"]\n')
    assert load_keys(path)["lab"].roles == {"reader"}


def test_a_token_is_a_credential(tmp_path):
    assert load_credentials(written(tmp_path, 'token = "abc"')) == Token("abc")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no keys"),
        ("hush", "is not TOML"),
        ('lab = "hush"', "stands outside a table"),
        ('[lab]\nsecret = "hush"', "no usable secret"),
        ('[lab]\nname = "hush"', "no usable secret"),
        ("[lab]\nsecret = 5", "is no text"),
        ('[lab]\nsercet = "hush"', "no setting 'sercet'"),
        (f'[lab]\nsecret = "{SECRET.hex()}"\nroles = "hush"', "not a list of names"),
    ],
)
def test_what_is_wrong_with_a_file_of_keys_is_said_without_its_secrets(tmp_path, text, sentence):
    with pytest.raises(errors.RegistrationError, match=sentence) as refused:
        load_keys(written(tmp_path, text))
    assert "hush" not in str(refused.value)


def test_the_line_is_said_where_a_file_of_keys_is_wrong(tmp_path):
    good = keys_text("lab-1", SECRET, "")
    for wrong, place in (
        ('[lab-2]\nsecret = "hush"\n', "file.toml, line 4: the key 'lab-2'"),
        ('["lab 2"]  # new\nsercet = "hush"\n', "file.toml, line 4: the key 'lab 2'"),
        ('[lab-2]\nsecret = "hush\n', r"file.toml is not TOML \(at line 5, column 15\)"),
    ):
        with pytest.raises(errors.RegistrationError, match=place) as refused:
            load_keys(written(tmp_path, f"{good}\n{wrong}"))
        assert "hush" not in str(refused.value)


@pytest.mark.parametrize("text", ["", 'key = "lab"', 'key = "lab"\nsecret = "hush"', "token = 5", "hush"])
def test_what_is_wrong_with_credentials_is_said_without_them(tmp_path, text):
    with pytest.raises(errors.ConnectFailed) as refused:
        load_credentials(written(tmp_path, text))
    assert "hush" not in str(refused.value)


def test_a_file_that_others_can_read_is_warned_of(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load_credentials(written(tmp_path, 'token = "abc"', 0o644))
    assert "others can read it: chmod 600" in caplog.text
    assert "abc" not in caplog.text
