"""Certificates: whom they name, and what a server and a client can do with theirs."""

import ssl

import pytest

from objserver import errors
from objserver.security import ClientTLS, Principal, ServerTLS
from objserver.security.tls import binding_of, certified

DATE = "Jan  1 00:00:00 2030 GMT"


def of(*names):
    return certified({"subjectAltName": names, "notAfter": DATE}, ssl.cert_time_to_seconds)


def test_a_uri_names_before_a_dns_name_and_that_before_an_address():
    uri, dns, mail = ("URI", "spiffe://lab/ann"), ("DNS", "ann.lab"), ("email", "ann@lab")
    assert of(mail, dns, uri).name == "spiffe://lab/ann"
    assert of(mail, dns).name == "ann.lab"
    assert of(mail) == Principal("ann@lab", means="tls", expires_at=1893456000.0)


@pytest.mark.parametrize("names", [(), (("IP Address", "127.0.0.1"),), (("URI", ""),)])
def test_a_certificate_that_names_nobody_is_refused(names):
    with pytest.raises(errors.AuthenticationFailed, match="names nobody"):
        of(*names)


def test_the_common_name_names_nobody():
    certificate = {"subject": ((("commonName", "root"),),), "notAfter": DATE}
    with pytest.raises(errors.AuthenticationFailed):
        certified(certificate, ssl.cert_time_to_seconds)


def test_nothing_below_tls_1_2_is_spoken(lab):
    server = ServerTLS(certificate=str(lab / "server.pem"), key=str(lab / "server.key")).load(True).context
    client = ClientTLS(ca=str(lab / "ca.pem")).context
    assert server.minimum_version == client.minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_client_checks_the_servers_certificate_and_its_name(lab):
    context = ClientTLS(ca=str(lab / "ca.pem")).context
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


@pytest.mark.parametrize(("must", "mode"), [(True, ssl.CERT_REQUIRED), (False, ssl.CERT_OPTIONAL)])
def test_clients_must_have_a_certificate_unless_there_are_other_means(lab, must, mode):
    tls = ServerTLS(
        certificate=str(lab / "server.pem"), key=str(lab / "server.key"), client_ca=str(lab / "ca.pem")
    )
    assert tls.load(must).context.verify_mode == mode


def test_the_binding_is_the_hash_of_the_servers_own_certificate(lab):
    pem = (lab / "server.pem").read_text()
    identity = ServerTLS(certificate=str(lab / "server.pem"), key=str(lab / "server.key")).load(True)
    assert identity.binding == binding_of(ssl.PEM_cert_to_DER_cert(pem))
    assert binding_of(None) == b""


def test_files_that_cannot_be_used_are_named(lab):
    with pytest.raises(errors.RegistrationError, match=r"absent\.pem.*No such file"):
        ServerTLS(certificate=str(lab / "absent.pem")).load(True)
    with pytest.raises(errors.RegistrationError, match=r"ann\.key.*key values mismatch"):
        ServerTLS(certificate=str(lab / "server.pem"), key=str(lab / "ann.key")).load(True)
    with pytest.raises(errors.ConnectFailed, match=r"absent\.pem.*No such file"):
        ClientTLS(ca=str(lab / "absent.pem")).usable_context()
