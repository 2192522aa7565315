"""Replicas, and Serve's own proxy, listen on loopback only where the cluster is our own."""

from __future__ import annotations

import os
from typing import Any

from ray._common import tls_utils
from ray.serve._private import default_impl, replica

from mlops_ray.cluster.processes import MARK


def listen_on_loopback() -> None:
    """To be called where a replica or a proxy is made, on whatever cluster: matters on one of our own.

    A replica starts a gRPC server for calls by handle when it is initialised, on `[::]` whatever the settings say
    (Ray 2.60, `ReplicaBase._on_initialized`), and what it takes there is unpickled. There is no setting, so the
    function by which the server gets its address is replaced, in this process. A test reads the sockets.
    """
    if MARK in os.environ:
        replica.add_port_to_grpc_server = _on_loopback  # type: ignore[attr-defined]  # imported there, not exported
        default_impl.add_grpc_address = _add_on_loopback  # the server of `cluster.grpc_port`


def _on_loopback(server: Any, address: str) -> Any:
    add: Any = tls_utils.add_port_to_grpc_server
    return add(server, address.replace("[::]", "127.0.0.1"))


def _add_on_loopback(grpc_server: Any, server_address: str) -> Any:
    return grpc_server.add_insecure_port(server_address.replace("[::]", "127.0.0.1"))
