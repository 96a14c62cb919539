"""Probes of the parts: each connects as a client of the part does, and takes at most a second."""

import http.client
import smtplib
import socket

from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError

PATIENCE = 1.0


def broker_answers(url: str) -> bool:
    limits = {"socket_connect_timeout": PATIENCE, "socket_timeout": PATIENCE}
    try:
        with Connection(
            _as_celery_spells(url), connect_timeout=PATIENCE, transport_options=limits
        ) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
    except (OperationalError, OSError):
        return False
    return True


def inbox_greets(host: str, port: int) -> bool:
    try:
        with smtplib.SMTP(host, port, timeout=PATIENCE):
            return True
    except (OSError, smtplib.SMTPException):
        return False


def worker_answers(broker_url: str, node: str) -> bool:
    with Celery(broker=_as_celery_spells(broker_url), set_as_current=False) as app:
        try:
            return bool(app.control.ping(destination=[node], timeout=PATIENCE / 2, limit=1))
        except OperationalError:
            return False


def web_answers(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def port_is_free(host: str, port: int) -> bool:
    try:
        socket.create_server((host, port)).close()
    except OSError:
        return False
    return True


def _as_celery_spells(url: str) -> str:
    return url.replace("unix://", "redis+socket://", 1)
