"""Texts for shoppers: the display name of a product, and an amount of money with its sign. Pure.

Mails, SMS, push notices and lists use these functions. `rest_api/pages` has the same rules in JavaScript.
"""

from contracts.currencies import SIGNS, decimals
from contracts.inventory import Money


def display_name(name: str) -> str:
    """Return the display name of a product whose name in the catalogue is `name`.

    A name entirely in capitals is shown in lower case, with its first character in upper case. Any other name is shown
    as it is.
    """
    lowered = name.lower()
    if name != name.upper() or name == lowered:
        return name
    return lowered[:1].upper() + lowered[1:]


def format_money(money: Money) -> str:
    """Format an amount with the sign and the decimals of its currency: `£1,250.00`, `¥849`, `8.49 CHF`."""
    digits = decimals(money.currency)
    whole, part = divmod(abs(money.amount), 10**digits)
    number = f"{whole:,}.{part:0{digits}}" if digits else f"{whole:,}"
    minus = "-" if money.amount < 0 else ""
    sign = SIGNS.get(money.currency)
    return f"{minus}{sign}{number}" if sign else f"{minus}{number} {money.currency}"
