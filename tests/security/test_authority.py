"""The private authority of a lab."""

import stat

import pytest
from cryptography import x509

from objserver import errors
from objserver.security import authority


def alternatives(path):
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_keys_are_for_their_owner_only(lab):
    for name in ("ca", "server", "ann"):
        assert stat.S_IMODE((lab / f"{name}.key").stat().st_mode) == 0o600


def test_hosts_are_names_or_addresses(lab):
    assert list(map(str, alternatives(lab / "server.pem").get_values_for_type(x509.IPAddress))) == [
        "127.0.0.1"
    ]
    assert alternatives(lab / "server.pem").get_values_for_type(x509.DNSName) == ["localhost"]


@pytest.mark.parametrize(
    ("name", "kind", "file"),
    [
        ("bob", x509.DNSName, "bob"),
        ("bob@lab.example", x509.RFC822Name, "bob@lab.example"),
        ("spiffe://lab/bob", x509.UniformResourceIdentifier, "spiffe___lab_bob"),
    ],
)
def test_a_client_is_named_by_what_its_name_looks_like(lab, name, kind, file):
    written = authority.issue_client(lab, name)
    assert written == [lab / f"{file}.key", lab / f"{file}.pem"]
    assert alternatives(lab / f"{file}.pem").get_values_for_type(kind) == [name]


def test_nothing_is_overwritten(lab):
    before = (lab / "ca.key").read_bytes()
    with pytest.raises(errors.RegistrationError, match=r"ca\.key exists and is not overwritten"):
        authority.make_authority(lab, "Another")
    assert (lab / "ca.key").read_bytes() == before


def test_without_an_authority_nothing_is_signed(tmp_path):
    with pytest.raises(errors.RegistrationError, match="make one first: objserver keys ca"):
        authority.issue_client(tmp_path, "ann")


@pytest.mark.parametrize("name", ["", "server", "ca", ".."])
def test_a_client_does_not_take_the_files_of_others(lab, name):
    with pytest.raises(errors.RegistrationError, match="files need a name of their own"):
        authority.issue_client(lab, name)


def test_a_client_has_no_file_outside_the_directory(lab):
    assert authority.issue_client(lab, "../bob") == [lab / "_bob.key", lab / "_bob.pem"]


def test_a_name_that_a_certificate_cannot_say_is_refused(lab):
    with pytest.raises(errors.RegistrationError, match="names in it are ASCII"):
        authority.issue_client(lab, "ann\u00e9")
