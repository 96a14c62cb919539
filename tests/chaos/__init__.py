"""Fault injection with real processes and servers, checked against the relay's own records.

`scenarios` lists the faults, each in a short form for `make test` and a long one for `make chaos`.
`site` starts the installation under test: a database, a broker, a relay that records each mail it
accepts, web processes that queue, and workers. `history` compares three records: the ids that
`send_email()` returned, the mails that the relay accepted, and the states in the database. No
counter of Mailer itself is trusted.
"""
