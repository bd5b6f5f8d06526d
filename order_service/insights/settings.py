"""What the insights are told from outside, beside what every service is."""

from pydantic import Field

from infrastructure.settings import Settings as Shared


class Settings(Shared):
    """Environment variables `HOLDFAST_RELATED_MIN_SUPPORT` and so on."""

    related_min_support: float = Field(
        default=0.001,
        ge=0,
        le=1,
        description="products are related when at least this share of all orders has both; one order is the least",
    )
