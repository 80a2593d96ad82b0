"""A file says who may call what; what is wrong in it is named with its place."""

import pytest

from objserver import errors
from objserver.security import Principal, Rule, Rules
from objserver.security.rules import covers

FILE = """
[roles]
teller = ["alice", "bank/*"]

[[rule]]
effect = "allow"
roles = "teller"
objects = ["Account/*"]
methods = ["deposit"]

[[rule]]
effect = "deny"
principals = ["*"]
objects = "Account/vault"
"""


def test_a_file_is_read():
    assert Rules.parse(FILE, "bank.toml") == Rules(
        (
            Rule(
                allow=True,
                objects=("Account/*",),
                methods=("deposit",),
                roles=frozenset({"teller"}),
                where="bank.toml, rule 1 (line 5)",
            ),
            Rule(
                allow=False,
                objects=("Account/vault",),
                principals=("*",),
                where="bank.toml, rule 2 (line 11)",
            ),
        ),
        {"teller": ("alice", "bank/*")},
    )


def test_a_file_gives_roles_beside_those_that_were_proven():
    rules = Rules.parse(FILE)
    assert rules.roles_of(Principal("alice", frozenset({"auditor"}))) == {"auditor", "teller"}
    assert rules.roles_of(Principal("bank/3")) == {"teller"}
    assert rules.roles_of(Principal("Alice")) == frozenset()
    assert rules.roles_of(Principal("bank")) == frozenset()


@pytest.mark.parametrize(
    ("pattern", "identifier", "is_covered"),
    [
        ("Account/*", "Account/alice", True),
        ("Account/*", "Account/a/b", True),
        ("Account/*", "Account/", True),
        ("Account/*", "Account", False),
        ("Account/*", "Accounts/alice", False),
        ("Account/*", "account/alice", False),
        ("Account", "Account", True),
        ("Account", "Account/", False),
        ("caf\u00e9", "cafe\u0301", False),
        ("*", "", True),
        ("a.c", "abc", False),
        ("a?", "ab", False),
    ],
)
def test_a_pattern_is_exact_up_to_its_star(pattern, identifier, is_covered):
    assert covers([pattern], identifier) == is_covered


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[[rule]\n", "r.toml is not TOML"),
        ("rules = []", "r.toml: there is no 'rules' in rules; did you mean 'rule'"),
        ("rule = 5", "r.toml: each rule begins with"),
        ("roles = 5", r"r.toml: \[roles\] has lines like"),
        ('[roles]\nteller = "a*b"', r"r.toml, \[roles\]: 'a\*b': a \* means any rest"),
        ('[[rule]]\neffect = "permit"', r"r.toml, rule 1 \(line 1\): effect is"),
        ('\n[[rule]]\neffect = "allow"\nobjects = "*"', r"rule 1 \(line 2\) is for nobody"),
        ('[[rule]]\neffect = "allow"\nroles = ["a"]', r"rule 1 \(line 1\) is about nothing"),
        ('[[rule]]\neffect = "allow"\nroles = []\nobjects = "*"', r"roles is a text or a list of texts"),
        ('[[rule]]\neffect = "allow"\nroles = ["*"]\nobjects = "*"', r"a role is named exactly"),
        ('[[rule]]\neffect = "allow"\nroles = [5]\nobjects = "*"', r"roles are texts, and 5 is none"),
        ('[[rule]]\neffect = "allow"\nobject = "*"', r"no 'object' in rules; did you mean 'objects'"),
        ('rule = [{ effect = "no" }]', r"r.toml, rule 1: effect is"),
    ],
)
def test_an_error_names_the_rule_and_its_line(text, sentence):
    with pytest.raises(errors.RegistrationError, match=sentence):
        Rules.parse(text, "r.toml")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(errors.RegistrationError, match=r"no\.toml cannot be read"):
        Rules.load(tmp_path / "no.toml")


def test_a_file_is_loaded(tmp_path):
    (tmp_path / "bank.toml").write_text(FILE)
    assert len(Rules.load(tmp_path / "bank.toml").rules) == 2
