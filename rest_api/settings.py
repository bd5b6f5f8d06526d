"""Settings of the edge, in addition to those that every service has."""

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from infrastructure.security.secrets import TokenSettings, WebhookSettings, require_distinct
from rest_api.protocol.client_frames import PING_SECONDS


class EdgeSettings(WebhookSettings, TokenSettings):
    """Addresses, origins and limits of the edge. Lists are comma-separated."""

    http_host: str = "127.0.0.1"
    http_port: int = Field(default=8080, ge=0, le=65535, description="0: any free port")
    allowed_origins: str = Field(
        default="", description="comma-separated origins of other pages that may use this shop"
    )
    trusted_hosts: str = Field(
        default="", description="comma-separated host names accepted in addition to the local ones"
    )
    forwarded_allow_ips: str = Field(
        default="", description="comma-separated proxies whose X-Forwarded-* headers are trusted; empty: none"
    )
    accounts_url: str = Field(
        default="http://127.0.0.1:8086", pattern=r"^https?://[!-~]+$", description="URL of the account service"
    )
    accounts_timeout_seconds: float = Field(
        default=5, gt=0, le=60, description="seconds within which the account service must answer"
    )
    currency: str = Field(default="GBP", pattern=r"^[A-Z]{3}$", description="currency of an empty cart's total")
    ping_seconds: int = Field(
        default=PING_SECONDS, ge=1, le=60, description="interval between pings, and time limit for each pong"
    )
    request_seconds: float = Field(default=10, gt=0, le=60, description="time limit to receive a whole request")
    unread_seconds: float = Field(
        default=30, gt=0, le=300, description="time limit of a client that has stopped reading a response"
    )
    keep_alive_seconds: float = Field(default=15, gt=0, le=300, description="time that an idle connection stays open")
    close_seconds: float = Field(
        default=5, gt=0, le=60, description="time limit of a client to read the last bytes before a close"
    )
    guest_token_hours: int = Field(default=24 * 30, ge=1, le=24 * 365)
    guest_session_hours: int = Field(
        default=24 * 180,
        ge=1,
        description="hours after a guest's first token at which the last renewed one ends",
    )
    renewed_token_seconds: float = Field(
        default=60, ge=0, description="how long a guest's tokens stay valid after a newer one was issued"
    )

    mails_url: str = Field(
        default="",
        description="address of the local mail catcher's page; the shop's page links to it in the local profile",
    )

    payment_tokens: str = Field(
        default="tok_approve,tok_decline,tok_timeout,tok_late,tok_twice,tok_wrong_amount",
        description="accepted payment tokens, comma-separated; empty: accept any, the provider validates",
    )
    notice_days: int = Field(default=90, ge=10, description="days for which notices and their texts are kept")
    provider_patience_seconds: float = Field(
        default=30, ge=0, description="how long the payment provider may be unavailable before orders are refused"
    )

    limits: Literal["on", "off"] = "on"
    limit_changes: int = Field(
        default=100, ge=1, description="requests or frames that change something, per minute and user"
    )
    limit_others: int = Field(default=600, ge=1, description="other requests or frames, per minute and user")
    limit_anonymous: int = Field(default=300, ge=1, description="requests without a user, per minute and address")
    limit_network_changes: int = Field(
        default=1000, ge=1, description="requests or frames that change something, per minute and network"
    )
    limit_network_others: int = Field(
        default=6000, ge=1, description="other requests or frames, per minute and network"
    )
    limit_network_guests: int = Field(default=300, ge=1, description="new guests, per hour and network")
    limit_unanswered: int = Field(default=64, ge=1, description="unanswered requests per user")
    limit_sockets: int = Field(default=5, ge=1, description="sockets per user")
    limit_under_way: int = Field(
        default=1024,
        ge=1,
        description="in-flight requests always admitted; beyond that, one second of recent throughput",
    )
    limit_address_sockets: int = Field(default=200, ge=1, description="sockets per address")
    limit_address_connections: int = Field(
        default=256, ge=1, description="connections per address, sockets included, except those of trusted proxies"
    )

    @model_validator(mode="after")
    def _production_has_limits(self) -> Self:
        if self.profile == "production" and self.limits == "off":
            raise ValueError("HOLDFAST_LIMITS is off; the production profile requires limits: set HOLDFAST_LIMITS=on")
        return self

    @model_validator(mode="after")
    def _production_has_different_secrets(self) -> Self:
        require_distinct(self, "secret", "secret_previous", "webhook_secret")
        return self

    @model_validator(mode="after")
    def _passwords_are_sent_over_tls_in_production(self) -> Self:
        url = urlsplit(self.accounts_url)
        if url.scheme != "https" and self.requires_tls("accounts", url.hostname or ""):
            raise ValueError(
                f"HOLDFAST_ACCOUNTS_URL is {url.scheme}://{url.hostname}, and production sends passwords over TLS only:"
                " use https://, or add accounts to HOLDFAST_ALLOW_PLAINTEXT if the network between is private"
            )
        return self

    def accepted_origins(self, port: int) -> frozenset[str]:
        """Return the origins whose pages may use this shop: `allowed_origins`, and locally its own (both local names).

        In production a page of localhost belongs to the visitor's machine, not to the shop.
        """
        own = {f"http://127.0.0.1:{port}", f"http://localhost:{port}"} if self.profile == "local" else set()
        return frozenset(own | set(_comma_separated(self.allowed_origins)))

    def accepted_hosts(self) -> frozenset[str]:
        """Return the accepted values of a `Host` header, without the port."""
        allowed = {origin.partition("://")[2].rsplit(":", 1)[0] for origin in _comma_separated(self.allowed_origins)}
        own = {"127.0.0.1", "localhost", "[::1]", self.http_host}
        return frozenset(own | allowed | set(_comma_separated(self.trusted_hosts)))

    def accepted_payment_tokens(self) -> frozenset[str] | None:
        """Return the accepted payment tokens; `None` if any is accepted and the provider validates."""
        return frozenset(_comma_separated(self.payment_tokens)) or None

    def trusted_proxies(self) -> tuple[str, ...]:
        """Return the proxies whose forwarding headers are trusted."""
        return _comma_separated(self.forwarded_allow_ips)


def _comma_separated(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
