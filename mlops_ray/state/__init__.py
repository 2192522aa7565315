"""The state database: what the loop has decided and where it stands, in SQLite or PostgreSQL with the same code.

`Store.open(url)` creates or migrates the schema. All changes go through `with store.begin() as tx:` or `store.run(fn)`.
There is **one writer at a time** on either database: SQLite's `BEGIN IMMEDIATE`, on PostgreSQL an advisory lock held
to the end of the transaction. A writer therefore sees everything that writers before it committed, which makes "read,
decide, write" race free, the ledger one chain and a lease's guard conclusive, without serialization failures. The price
is that a write transaction must be short: no network call, no computation, and none inside another.

JSON bodies (`spec`, `plan`, `state`, `outcome`, `result`, ...) are plain dicts, stored as canonical JSON text, so that
both databases return the same floats, bit for bit. NaN and infinity are refused; None says "missing".
Times are float seconds since the epoch, handed in by the caller.
"""

from mlops_ray.state.rows import (
    ApprovalRow,
    Cursor,
    Glimpse,
    Lease,
    ProjectRow,
    RetrainRow,
    RolloutRow,
    ServingRow,
    VersionRow,
    WindowRow,
)
from mlops_ray.state.store import HEAD, IDLE_S, LOCK_WAIT_S, VERSION_TABLE, Store, revision
from mlops_ray.state.tables import (
    LEASES,
    METADATA,
    PROJECTS,
    RETRAINS,
    ROLLOUTS,
    SERVING,
    canonical,
    insert_of,
    storable,
)
from mlops_ray.state.transaction import Tx

__all__ = [
    "HEAD",
    "IDLE_S",
    "LEASES",
    "LOCK_WAIT_S",
    "METADATA",
    "PROJECTS",
    "RETRAINS",
    "ROLLOUTS",
    "SERVING",
    "VERSION_TABLE",
    "ApprovalRow",
    "Cursor",
    "Glimpse",
    "Lease",
    "ProjectRow",
    "RetrainRow",
    "RolloutRow",
    "ServingRow",
    "Store",
    "Tx",
    "VersionRow",
    "WindowRow",
    "canonical",
    "insert_of",
    "revision",
    "storable",
]
