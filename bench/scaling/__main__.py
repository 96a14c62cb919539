"""`python -m bench.scaling`: write the tables of docs/scaling.md."""

from bench.scaling.page import Measured, write

if __name__ == "__main__":
    write(Measured.read())
