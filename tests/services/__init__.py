"""The real services the tests talk to: started by the suite, private to it, gone with it."""
