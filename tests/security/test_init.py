"""The room's names are where it says."""

import subprocess
import sys

import objserver.security as security


def test_every_name_is_there():
    assert sorted(security.__all__) == sorted(security._home_of)
    for name in security.__all__:
        assert getattr(security, name) is not None


def test_who_decides_nothing_loads_no_decisions():
    code = (
        "import sys, objserver.security as s; s.Principal; "
        "print('objserver.security.authorization' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
