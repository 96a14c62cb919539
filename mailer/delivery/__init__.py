"""Mail goes out.

No SQL transaction is open while the network is used, and no single mail stops the others. Start
with `dispatcher.py`.
"""

from mailer.delivery.dispatcher import Dispatcher, Progress
from mailer.delivery.maintenance import Maintenance
from mailer.delivery.services import Services
from mailer.delivery.wiring import DeliveryParts, build_delivery

__all__ = ["DeliveryParts", "Dispatcher", "Maintenance", "Progress", "Services", "build_delivery"]
