"""The tests of Mailer.

unit/ one file for a module: no socket, no process, the clock is passed in integration/ modules with
real services: the store on both databases, the bell on Redis, the connection on a real SMTP server
acceptance/ the whole way, with real Celery worker processes services/ starts and stops what the
tests above talk to; conftest.py hands it out as fixtures
"""
