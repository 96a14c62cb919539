"""Bytes that nobody meant.

`make fuzz` has atheris look for some that break a target, `make test` tries the corpus and others.
"""
