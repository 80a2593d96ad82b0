"""The command that runs seeds."""

import pytest

from objserver.storage import Committer
from objserver.testing.simulate import main, run


@pytest.fixture
def hasty(monkeypatch):
    """Calls are answered before their changes are stored."""
    submit = Committer.submit

    def at_once(self, change, done):
        submit(self, change, lambda problem: None)
        done(None)

    monkeypatch.setattr(Committer, "submit", at_once)


def test_one_run_is_told(capsys):
    assert main(["--seed", "3", "--seconds", "5", "--verbose"]) == 0
    told = capsys.readouterr().out
    assert "deposit" in told
    assert "seed 3, trace " in told
    assert "1 runs, 0.00 virtual hours" in told


def test_hours_are_made_of_seeds(capsys):
    assert main(["--seed", "3", "--seconds", "6", "--hours", "0.005"]) == 0
    assert "3 runs" in capsys.readouterr().out


def test_the_first_failure_ends_it_and_says_how_to_see_it(capsys, hasty):
    assert main(["--hours", "1", "--seconds", "30"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("to see it: python -m objserver.testing.simulate --seed ")
    assert last.endswith(" --seconds 30.0 --verbose")


def test_the_results_end_with_the_failure(hasty):
    results = run(0, 1.0, 30.0)
    assert [bool(result.failures) for result in results] == [False] * (len(results) - 1) + [True]


def test_help_says_what_it_is_for(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "on virtual time" in capsys.readouterr().out
