"""The Docker engine: each sandbox is a container of a Docker daemon, with our agent as its first
process.

Imports nothing by itself: whether a daemon answers is asked by programs, too, that then use the
embedded engine.
"""
