"""Breaking things on purpose: real processes, real servers, real faults, and a checker that believes none of our own counters.

`scenarios` has what is broken and how, each in a short form for `make test` and a long one for `make chaos`. `site` is what is
broken: a database, a broker, a relay that notes what it took, processes that queue, workers. `history` compares three records:
the ids that `send_email()` returned, what the relay took, and what the database says.
"""
