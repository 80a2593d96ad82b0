"""What holds for all tests: a busy machine must not fail a property."""

from hypothesis import settings

settings.register_profile("objserver", deadline=None)
settings.load_profile("objserver")
