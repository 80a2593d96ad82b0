"""Clusters: several servers that are one to their clients."""
