"""The local stack of this repository, started by `make run`: broker, inbox, worker and web."""
