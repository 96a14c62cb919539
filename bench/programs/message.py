"""The mail as a message of Flask-Mail."""

from flask_mail import Message

from bench import mail


def make_message() -> Message:
    return Message(mail.SUBJECT, [mail.RECIPIENT], mail.TEXT, mail.HTML, sender=mail.SENDER)
