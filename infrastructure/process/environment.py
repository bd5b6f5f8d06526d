"""Environment of our processes: variables of other programs that libraries would obey, and secrets by process.

A developer's shell may set `BROKER_URL` or `PGHOST` for another project, and libraries read such variables silently.
Only the settings named `HOLDFAST_…` decide for us. A library's parameter is passed explicitly where it has one; the
variables here are removed from the environment of every process that we start, and of those that read them late.
"""

import os
from collections.abc import Collection, Mapping
from typing import Final

PREFIX: Final = "HOLDFAST_"

_FOREIGN_PREFIXES: Final = (
    "AIOHTTP_",
    "AIOKAFKA_",
    "AIOSMTPD_",
    "BROKER_",
    "FASTAPI_",
    "FAUST_",
    "F_",  # Faust's second prefix
    "KAFKA_",
    "LOG4J_",
    "OTEL_",
    "PROMETHEUS_",
    "PSYCOPG_",
    "UVICORN_",
    "WEBSOCKETS_",
)
_FOREIGN_NAMES: Final = frozenset(
    {
        # Faust and mode read these at import; the other settings of Faust are switched off in `messaging/faust/app.py`.
        "DEVLOG",
        "DJANGO_SETTINGS_MODULE",
        "NO_CYTHON",
        "NODE_HOSTNAME",
        "TYPEXPR_DEBUG",
        # Servers and HTTP clients.
        "FORWARDED_ALLOW_IPS",
        "NETRC",
        "SSLKEYLOGFILE",  # would write the keys of all TLS connections to a file
        "WEB_CONCURRENCY",
        "prometheus_multiproc_dir",  # still obeyed, as the old spelling
        # Java.
        "JAVA_TOOL_OPTIONS",
        "JDK_JAVA_OPTIONS",
        "_JAVA_OPTIONS",
    }
)
_LIBPQ_PREFIX: Final = "PG"
_POSTGRES_URL: Final = f"{PREFIX}POSTGRES_URL"

SECRETS: Final = frozenset(
    PREFIX + name
    for name in (
        "ACCOUNTS_SECRET",
        "ACCOUNTS_SECRET_PREVIOUS",
        "KAFKA_KEY_PASSWORD",
        "KAFKA_PASSWORD",
        "POSTGRES_URL",
        "PROVIDER_KEY",
        "REDIS_URL",
        "SECRET",
        "SECRET_PREVIOUS",
        "SMTP_URL",
        "WEBHOOK_SECRET",
    )
)
"""Settings that are secret or may contain a password. Each can be given in a file, named by the variable `…_FILE`."""
KAFKA_SECRETS: Final = frozenset({"HOLDFAST_KAFKA_KEY_PASSWORD", "HOLDFAST_KAFKA_PASSWORD"})
"""Secrets of every service that uses Kafka."""
POSTGRES_SECRETS: Final = frozenset({"HOLDFAST_POSTGRES_URL"})
"""Secrets of every service that uses PostgreSQL."""
SERVER_SECRETS: Final = KAFKA_SECRETS | POSTGRES_SECRETS
"""Secrets of every service that uses both."""
FILE_SUFFIX: Final = "_FILE"


def foreign_variables(environ: Mapping[str, str], *, libpq: bool = True) -> frozenset[str]:
    """Return the names of the variables in `environ` that are meant for other programs.

    With `libpq`, those of libpq are ours if `HOLDFAST_POSTGRES_URL` is not set: then they say which database to use.
    """
    given = {name.upper() for name, value in environ.items() if value}
    uses_libpq = libpq and not given & {_POSTGRES_URL, _POSTGRES_URL + FILE_SUFFIX}
    return frozenset(
        name
        for name in environ
        if name in _FOREIGN_NAMES
        or name.startswith(_FOREIGN_PREFIXES)
        or (name.startswith(_LIBPQ_PREFIX) and not uses_libpq)
    )


def remove_foreign_variables(*, libpq: bool = True) -> None:
    """Remove the variables of other programs from this process's environment, before a library reads them.

    `libpq` as for `foreign_variables`.
    """
    for name in foreign_variables(os.environ, libpq=libpq):
        del os.environ[name]


def child_environment(
    own: Mapping[str, str],
    secrets: Collection[str] = SECRETS,
    *,
    inherited: Mapping[str, str] | None = None,
    libpq: bool = True,
) -> dict[str, str]:
    """Return the environment of a child process: `own` settings over those inherited from this process.

    Variables of other programs are left out, and all secrets except those named in `secrets`. With `libpq` false, the
    variables of libpq are left out even if no database is named. A process without the secrets of Kafka gets no
    settings of Kafka at all: they would be incomplete.
    """
    before = os.environ if inherited is None else inherited
    merged = {**{name: value for name, value in before.items() if name.upper() not in own}, **own}
    withheld = SECRETS.difference(secrets)
    foreign = foreign_variables(merged, libpq=libpq)
    unused = () if KAFKA_SECRETS.intersection(secrets) else (f"{PREFIX}KAFKA",)
    return {
        name: value
        for name, value in merged.items()
        if (name in own or name not in foreign)
        and name.upper().removesuffix(FILE_SUFFIX) not in withheld
        and not name.upper().startswith(unused)
    }
