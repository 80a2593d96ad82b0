"""Fakes that the tests of objserver, and of those who build on it, share."""
