"""Fuzzing of the code that parses or writes bytes.

`make fuzz` searches for breaking inputs with atheris. `make test` runs the corpus and changes of
it.
"""
