"""The settings of the insights, in addition to those of every service."""

from pydantic import Field

from infrastructure.process.settings import Settings as SharedSettings


class Settings(SharedSettings):
    """Environment variables such as `HOLDFAST_RELATED_MIN_SUPPORT`."""

    related_min_support: float = Field(
        default=0.001,
        ge=0,
        le=1,
        description="least share of all orders that contain both related products; one order is the minimum",
    )
