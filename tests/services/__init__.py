"""Real services for the tests: started by the suite, private to it, and removed with it."""
