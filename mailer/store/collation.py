"""The order of ids, whatever collation a database has.

The bytes of ids sort by time. A collation may sort them otherwise: in Danish, "aa" is a letter
after "z", in Welsh, "dd" is one after "d", and some collations sort digits as numbers.
"""

from mailer.store.transactions import Transaction

SORTS_BY_BYTE = "SELECT 'aa' < 'ab' AND 'dd' < 'de' AND '19' < '1a'"


def id_by_byte(transaction: Transaction) -> str:
    """Return the SQL of an id that is to be compared, or sorted, by its bytes.

    In a collation with another order, no index has this order: a statement reads all ids.
    """
    [(sorts_by_byte,)] = transaction.execute(SORTS_BY_BYTE, {})
    return "id" if sorts_by_byte else 'id COLLATE "C"'
