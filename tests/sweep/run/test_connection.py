"""Ray clusters that cannot be used."""

from __future__ import annotations

import re
import socket

import pytest

from longshort.errors import UserError
from longshort.sweep.run.engines import connection
from longshort.sweep.run.engines.connection import cause_of, connect, reach


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("address", ["free", "nowhere.invalid:6379", "host:port", "nowhere"])
def test_an_address_where_nothing_listens_is_found_before_ray_is_asked(address: str) -> None:
    address = free_address() if address == "free" else address
    with pytest.raises(UserError, match=re.escape(address)) as raised:
        connect(address)
    assert (raised.value.kind, raised.value.field) == ("cluster", "address")


def test_rays_client_is_refused() -> None:
    with pytest.raises(UserError, match="ray://head:10001") as raised:
        connect("ray://head:10001")
    assert (raised.value.kind, raised.value.field) == ("usage", "address")


def test_what_listens_is_reached() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        reach(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize(
    ("error", "kind", "fact"),
    [
        (ConnectionError("Version mismatch: 1 and 2.\nMore."), "cluster", "Version mismatch: 1 and 2."),
        (ImportError("The remote function failed to import on the worker. x"), "dependency", "longshort"),
        (ImportError("No module named 'longshort'"), "dependency", "longshort"),
        (TimeoutError("Is it so?"), "cluster", "Is it so?"),
    ],
)
def test_the_cause_is_named(error: Exception, kind: str, fact: str) -> None:
    found = connection._cluster_error("a:1", error)
    assert found.kind == kind
    assert "a:1" in str(found)
    assert fact in str(found)
    assert "\n" not in str(found)


def test_a_token_that_is_required_is_found_in_the_causes() -> None:
    error = ConnectionError("Failed to connect to Ray cluster at a:1")
    error.__cause__ = RuntimeError("ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken")
    found = connection._cluster_error("a:1", error)
    assert found.kind == "cluster"
    assert "auth_token" in str(found)


def test_of_a_task_the_error_that_it_raised_is_told() -> None:
    error = RuntimeError("ray::f()\n  Traceback")
    error.cause = ValueError("what it was")  # type: ignore[attr-defined]  # as Ray has it
    assert cause_of(error) == "what it was"
    assert cause_of(RuntimeError()) == "RuntimeError"
