"""The test kit: the mail of an application under test, without broker, worker or mail server.

>>> from mailer.testing import Outbox
>>> with Outbox(app) as outbox:
...     receipt = mailer.send_email("ada@example.com", "Welcome", "mail/welcome", name="Ada")
>>> outbox[0].subject
'Welcome'
>>> mail = outbox.assert_sent(to="ada@example.com", context={"name": "Ada"})

With pytest, the fixtures `outbox`, `drain` and `fake_relay` do the same for your fixture `app`.
"""

from mailer.testing.mails import RecordedMail
from mailer.testing.matching import Criteria
from mailer.testing.outbox import Outbox
from mailer.testing.relay import FakeRelay
from mailer.testing.snapshots import Snapshots

__all__ = ["Criteria", "FakeRelay", "Outbox", "RecordedMail", "Snapshots"]
