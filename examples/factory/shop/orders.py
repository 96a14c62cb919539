"""The page that takes orders."""

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from mailer import InvalidMail, StoreUnavailable
from shop.extensions import db, mailer
from shop.models import Order

orders = Blueprint("orders", __name__)


@orders.post("/orders")
def order() -> ResponseReturnValue:
    """Store an order and queue its mail, or neither."""
    order = Order(address=request.form["address"], pieces=int(request.form["pieces"]))
    db.session.add(order)
    db.session.flush()  # gives the order its id
    receipt = mailer.send_email(
        order.address,
        f"Your order {order.id}",
        "mail/order",
        connection=db.session,
        idempotency_key=f"order-{order.id}",
        order=order,
    )
    db.session.commit()  # from here on the mail is on its way; a rollback would have dropped it
    return {"order": order.id, "mail": receipt.id}, 202


@orders.errorhandler(InvalidMail)
def refuse(error: InvalidMail) -> ResponseReturnValue:
    db.session.rollback()
    return {"error": str(error)}, 422


@orders.errorhandler(StoreUnavailable)
def come_back(_error: StoreUnavailable) -> ResponseReturnValue:
    db.session.rollback()
    return {"error": "Nothing is ordered: try again in a moment."}, 503, {"Retry-After": "10"}
