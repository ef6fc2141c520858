"""What each PostgreSQL error code (SQLSTATE) means for wbcd: one explicit table; the longest prefix holds. No driver needed.

    room     the server's disk is full: intake pauses
    waits    passes by itself, or by an administrator's hand at the server: asked again, with the reason in `wbcd status`
    rights   this role may not: told with the way out, and asked again, for a grant helps without a restart
    schema   a table or column is absent, or another than this version's
    tells    only a person helps, and asking again would not (a wrong password, damaged data): the error says what to do
    ends     a defect or a broken promise of the data: a StoreError that ends the daemon, which its unit starts again

https://www.postgresql.org/docs/current/errcodes-appendix.html. A code without a row ends: what nobody has thought about must
be seen. Asking again is harmless: every write is written so that its second time changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

Disposition = Literal["room", "waits", "rights", "schema", "tells", "ends"]

TABLE: Final[Mapping[str, Disposition]] = {
    # The connection, and the server's own life.
    "08": "waits",  # connection exceptions
    "08P01": "ends",  # protocol violation: not a PostgreSQL, or a defect of a pooler
    "57": "waits",  # operator intervention: 57014 cancelled (by hand, by statement_timeout), 57P01-57P03 shut down or starting
    "57P04": "waits",  # the database was dropped: a restore makes it anew
    "3D000": "waits",  # ... and until then there is none of that name
    "25P03": "waits",  # idle_in_transaction_session_timeout
    "25P04": "waits",  # transaction_timeout
    "25006": "waits",  # read-only: a standby, until it is promoted or the connection finds the primary
    # Somebody else's work.
    "40": "waits",  # rolled back: serialisation failure, deadlock; 40003: whether it was committed is unknown
    "40002": "ends",  # ... for a constraint
    "55000": "waits",  # object not in prerequisite state (a database that does not accept connections)
    "55006": "waits",  # object in use
    "55P03": "waits",  # a lock was not to be had in time
    "55P02": "tells",  # cannot change a parameter now: only a restart of the server does
    # The server is short of something, or its machine fails.
    "53": "waits",  # 53000, 53200 memory, 53300 connections, 53400 a configured limit
    "53100": "room",
    "58": "waits",  # 58000 system error, 58030 input/output error
    "F0": "waits",  # its configuration file is locked
    "XX000": "waits",  # internal error: a cancelled background process, a lost file handle; the reason is shown
    "XX001": "tells",  # data corrupted
    "XX002": "tells",  # index corrupted
    # Who may.
    "28": "tells",  # the password or the role was refused
    "42501": "rights",
    # The schema.
    "42P01": "schema",  # undefined table
    "42703": "schema",  # undefined column
    "42883": "schema",  # undefined function: a trigger's, of another revision
    "3F000": "schema",  # undefined schema
}


def disposition(state: str) -> Disposition:
    """Of one SQLSTATE, five characters; "ends" for a code that the table does not have."""
    for length in range(len(state), 1, -1):
        found = TABLE.get(state[:length])
        if found is not None:
            return found
    return "ends"
