"""A web application that hands COUNT mails to a mail server over one connection."""

import os
import smtplib

from bench import mail, producer


def main() -> None:
    letter = mail.as_bytes()
    with smtplib.SMTP(
        os.environ["MAIL_SERVER"], int(os.environ["MAIL_PORT"]), local_hostname="localhost"
    ) as server:
        producer.run(
            lambda: letter, lambda ready: server.sendmail(mail.SENDER, [mail.RECIPIENT], ready)
        )


if __name__ == "__main__":
    main()
