"""Only what setup.cfg cannot say: a part that is compiled where there is a compiler."""

from setuptools import Extension, setup

COMPILED = ["codecs/_budget", "security/_records", "wire/_kernel"]

setup(
    ext_modules=[
        Extension(f"objserver.{part.replace('/', '.')}", [f"objserver/{part}.c"], optional=True)
        for part in COMPILED
    ]
)
