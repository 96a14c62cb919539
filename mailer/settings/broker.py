"""The URL of the broker, for Celery and for the client of Redis."""

import re


def url_for_redis(url: str) -> str | None:
    """Translate a broker URL of Celery for redis-py. Return None if it is no single plain Redis."""
    if ";" in url:
        return None  # several brokers, for failover
    url = re.sub(
        r"\bssl_cert_reqs=CERT_(\w+)", lambda found: f"ssl_cert_reqs={found[1].lower()}", url
    )
    if url.startswith("redis+socket://"):
        url = url.replace("redis+socket://", "unix://", 1).replace("virtual_host=", "db=", 1)
    return url if url.startswith(("redis://", "rediss://", "unix://")) else None
