"""The tables of the shop. Mailer's own tables are made by `flask mail migrate`."""

from sqlalchemy.orm import Mapped, mapped_column

from shop.extensions import db


class Order(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    address: Mapped[str]
    pieces: Mapped[int]
