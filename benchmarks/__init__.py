"""Measurements of objserver beside its peers; `python -m benchmarks` runs them."""
