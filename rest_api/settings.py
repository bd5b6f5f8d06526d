"""What the edge is told from outside, beside what every service is told."""

from typing import Literal, Self

from pydantic import Field, model_validator

from infrastructure.settings import Settings
from rest_api.messages import PING_SECONDS


class EdgeSettings(Settings):
    """Addresses, origins and limits of the edge. Lists are words with commas between them."""

    http_host: str = "127.0.0.1"
    http_port: int = Field(default=8080, ge=0, le=65535, description="0: any free one")
    allowed_origins: str = Field(default="", description="origins of other pages that may use this shop")
    trusted_hosts: str = Field(default="", description="more names that a request may call this host by")
    forwarded_allow_ips: str = Field(default="", description="proxies whose X-Forwarded-… is believed; empty: none")
    currency: str = Field(default="GBP", pattern=r"^[A-Z]{3}$", description="of the total of an empty cart")
    ping_seconds: int = Field(default=PING_SECONDS, ge=1, le=60, description="between pings, and for each pong")
    guest_token_hours: int = Field(default=24 * 30, ge=1, le=24 * 365)

    payment_tokens: str = Field(
        default="tok_approve,tok_decline,tok_timeout,tok_late,tok_twice,tok_wrong_amount",
        description="what a payment may be made with; empty: anything, the provider will know",
    )
    provider_patience_seconds: float = Field(
        default=30, ge=0, description="the payment provider may be away this long before orders are refused for it"
    )

    limits: Literal["on", "off"] = "on"
    limit_changes: int = Field(default=100, ge=1, description="changing requests or frames a minute and user")
    limit_others: int = Field(default=600, ge=1, description="other requests or frames a minute and user")
    limit_anonymous: int = Field(default=300, ge=1, description="requests without a user a minute and address")
    limit_unanswered: int = Field(default=64, ge=1, description="unanswered requests a user")
    limit_sockets: int = Field(default=5, ge=1, description="sockets a user")
    limit_under_way: int = Field(
        default=1024, ge=1, description="requests under way that an edge always has room for; else a second's worth"
    )
    limit_address_sockets: int = Field(default=200, ge=1, description="sockets an address")

    @model_validator(mode="after")
    def _production_has_limits(self) -> Self:
        if self.profile == "production" and self.limits == "off":
            raise ValueError("HOLDFAST_LIMITS=off lifts what protects a shop; the production profile refuses it")
        return self

    def origins(self, port: int) -> frozenset[str]:
        """Whose pages may use this shop: its own, by both of its local names, and those allowed."""
        own = {f"http://127.0.0.1:{port}", f"http://localhost:{port}"}
        return frozenset(own | set(_words(self.allowed_origins)))

    def hosts(self) -> frozenset[str]:
        """The names, without a port, that a request may call this host by."""
        allowed = {origin.partition("://")[2].rsplit(":", 1)[0] for origin in _words(self.allowed_origins)}
        own = {"127.0.0.1", "localhost", "[::1]", self.http_host}
        return frozenset(own | allowed | set(_words(self.trusted_hosts)))

    def tokens(self) -> frozenset[str] | None:
        """The payment tokens that are known; None when the provider alone knows."""
        return frozenset(_words(self.payment_tokens)) or None

    def proxies(self) -> tuple[str, ...]:
        """The proxies whose forwarding headers are believed."""
        return _words(self.forwarded_allow_ips)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
