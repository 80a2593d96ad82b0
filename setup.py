"""Only what setup.cfg cannot say: a part that is compiled where there is a compiler."""

from setuptools import Extension, setup

setup(ext_modules=[Extension("objserver.wire._kernel", ["objserver/wire/_kernel.c"], optional=True)])
