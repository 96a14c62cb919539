"""The local stack: what `make run` starts, and the SMTP server with faults on demand that the tests use too."""
