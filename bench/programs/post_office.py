"""django-post_office in a Django of its own: `migrate`, `COUNT` or `COUNT send_many`, `deliver`.

Run it in the virtual environment of the peers.
"""

import os
import sys
from pathlib import Path

import django
from django.conf import settings
from django.core.management import call_command

from bench import mail, producer

_TEMPLATES = Path(__file__).parents[1] / "templates"

settings.configure(
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "post_office"],
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.environ["DATABASE_FILE"],
            # As durable as Mailer and faster than Django's defaults.
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL",
            },
        }
    },
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
    EMAIL_BACKEND="post_office.EmailBackend",
    EMAIL_HOST=os.environ["MAIL_SERVER"],
    EMAIL_PORT=int(os.environ["MAIL_PORT"]),
    # Without a log row for each sent mail, which is faster. Another number of threads than the
    # default makes no difference here.
    POST_OFFICE={
        "BACKENDS": {"default": "django.core.mail.backends.smtp.EmailBackend"},
        "BATCH_SIZE": int(os.environ["BATCH_SIZE"]),
        "LOG_LEVEL": 0,
    },
)
django.setup()


def main() -> None:
    match sys.argv[1]:
        case "migrate":
            call_command("migrate", verbosity=0)
        case "deliver":
            call_command("send_queued_mail", processes=2, lockfile=os.environ["DATABASE_FILE"])
        case count if sys.argv[2:] == ["send_many"]:
            send_to_many(int(count))
        case _:
            queue()


def send_to_many(count: int) -> None:
    """Queue a mailing, whose mails are rendered when they are delivered."""
    from post_office.mail import send_many  # noqa: PLC0415 -- Django wants its settings first
    from post_office.models import EmailTemplate  # noqa: PLC0415

    template = EmailTemplate.objects.create(
        name="order",
        subject=mail.SUBJECT,
        content=(_TEMPLATES / f"{mail.TEMPLATE}.txt").read_text(),
        html_content=(_TEMPLATES / f"{mail.TEMPLATE}.html").read_text(),
    )
    emails = (
        {
            "recipients": [address],
            "sender": mail.SENDER,
            "template": template,
            "context": {**context, "items": mail.ITEMS},
            "render_on_delivery": True,
        }
        for address, context in mail.recipients(count)
    )
    producer.run_once(lambda: send_many(emails))


def queue() -> None:
    from post_office.mail import send  # noqa: PLC0415 -- Django wants its settings first

    email = {"recipients": [mail.RECIPIENT], "sender": mail.SENDER, "subject": mail.SUBJECT}
    email |= {"message": mail.TEXT, "html_message": mail.HTML}
    producer.run(lambda: email, lambda ready: send(**ready))


if __name__ == "__main__":
    main()
