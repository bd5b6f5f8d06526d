"""Prepared statements that are sent to Postgres together and answered together: one write and one wait for all of them.

psycopg's own pipeline mode adapts parameters and results for each statement, and writes each one to the socket by
itself. For a transaction of a dozen short statements that was more work than everything else in it. Here parameters are
text, each statement is prepared once per connection, and libpq sends the statements when the last one is known.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import psycopg
from psycopg.adapt import Transformer
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

from infrastructure.storage.postgres import Connection

Parameters = Mapping[str, str] | Sequence[str]
"""Values of the placeholders in PostgreSQL's text format: by name for `%(name)s`, in order for `%s`."""
Row = tuple[Any, ...]

_PLACEHOLDER: Final = re.compile(r"%\((\w+)\)s|%s")


class NumberedQuery(NamedTuple):
    """A query with the placeholders of PostgreSQL's protocol, $1, $2 and so on."""

    text: str
    names: tuple[str, ...]
    """Names of the placeholders in the order of their numbers; empty if they had none."""


class StatementPipeline:
    """Pipeline of the statements `queries` over one connection, which is used for nothing else from then on.

    After any exception the state of the connection is unknown: close it.
    """

    def __init__(self, connection: Connection, queries: Mapping[str, NumberedQuery]) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._pgconn.enter_pipeline_mode()
        self._queries = queries
        self._prepared: set[str] = set()
        self._waiting: list[bool] = []
        """For each result that the server owes, whether it is that of an execution. The others are of preparations."""
        self._transformer = Transformer(connection)

    async def execute(self, statements: Sequence[tuple[str, Parameters]]) -> list[list[Row]]:
        """Execute statements after those that wait, in one round trip; return the rows of each, the waiting included.

        After an error in one of them the server skips the others. That error is raised, as `psycopg.Error`.
        """
        self.enqueue(statements)
        self._pgconn.pipeline_sync()
        await self._flush()
        results = await self._fetch_results()
        executions, self._waiting = self._waiting, []
        return [self._rows(result) for result, executed in zip(results, executions, strict=True) if executed]

    def enqueue(self, statements: Sequence[tuple[str, Parameters]]) -> None:
        """Let statements, each a name and its parameters, wait for the next `execute`. Many of them are sent before."""
        for name, parameters in statements:
            query, prepared_name = self._queries[name], name.encode()
            if name not in self._prepared:
                self._pgconn.send_prepare(prepared_name, query.text.encode())
                self._prepared.add(name)
                self._waiting.append(False)
            values = [parameters[each] for each in query.names] if isinstance(parameters, Mapping) else parameters
            self._pgconn.send_query_prepared(prepared_name, [value.encode() for value in values])
            self._waiting.append(True)

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    async def _flush(self) -> None:
        """Write everything. Read meanwhile, because the server does not read while its own output is not read."""
        while self._pgconn.flush():
            await self._wait(for_writing=True)
            self._pgconn.consume_input()

    async def _fetch_results(self) -> list[PGresult]:
        """Return the results up to the end of the pipeline; raise the first error among them."""
        results: list[PGresult] = []
        while True:
            while self._pgconn.is_busy():
                await self._wait()
                self._pgconn.consume_input()
            result = self._pgconn.get_result()
            if result is None:  # the end of the results of one statement
                continue
            if result.status == ExecStatus.PIPELINE_SYNC:
                return results
            if result.status == ExecStatus.FATAL_ERROR:
                raise psycopg.errors.error_from_result(result)
            results.append(result)

    async def _wait(self, *, for_writing: bool = False) -> None:
        """Wait until the socket can be read or, `for_writing`, written."""
        loop, socket = asyncio.get_running_loop(), self._pgconn.socket
        ready = loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        loop.add_reader(socket, wake)
        if for_writing:
            loop.add_writer(socket, wake)
        try:
            await ready
        finally:
            loop.remove_reader(socket)
            if for_writing:
                loop.remove_writer(socket)

    def _rows(self, result: PGresult) -> list[Row]:
        if not result.ntuples:
            return []
        self._transformer.set_pgresult(result)
        return self._transformer.load_rows(0, result.ntuples, tuple)


def number_placeholders(query: str) -> NumberedQuery:
    """Return `query` with numbers for its placeholders: one for each name, or one for each `%s` in order."""
    names: list[str] = []
    count = 0

    def number(placeholder: re.Match[str]) -> str:
        nonlocal count
        name = placeholder[1]
        if name is None:
            count += 1
            return f"${count}"
        if name not in names:
            names.append(name)
        return f"${names.index(name) + 1}"

    return NumberedQuery(_PLACEHOLDER.sub(number, query), tuple(names))
