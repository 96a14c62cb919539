"""The one SMTP server of the package: the inbox of developers, and the fake relay of tests."""
