"""Personal mail: the mail of one recipient of a bulk send."""

from dataclasses import replace

from mailer.content.snapshot_rendering import SnapshotRenderer
from mailer.message import Address, Message, own_message_id
from mailer.message.bulk import OwnPart


def personal_mail(
    message: Message,
    renderer: SnapshotRenderer,
    own: OwnPart,
    *,
    recipient: str,
    delivery_id: int,
    prefix: str | None,
) -> Message:
    """Render the mail of one recipient, whose headers win. The others are not named in it."""
    mail = renderer.render(own.context, own.locale)
    own_names = {name.lower() for name, _value in own.headers}
    shared = [pair for pair in message.headers if pair[0].lower() not in own_names]
    added = [(name, value) for name, value in own.headers if value is not None]
    return replace(
        message,
        message_id=own_message_id(message.message_id, delivery_id),
        subject=" ".join(filter(None, [prefix, mail.subject])),
        text=mail.bodies.text,
        html=mail.bodies.html,
        to=(Address(recipient, own.name),),
        headers=(*shared, *added),
    )
