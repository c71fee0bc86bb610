"""What is told about a Ray cluster that cannot be used."""

from __future__ import annotations

import socket

import pytest

from longshort.errors import UserError
from longshort.sweep.run.engines import connection
from longshort.sweep.run.engines.connection import connect, first_line, reach


def test_an_address_where_nothing_listens_is_told_before_ray_is_asked() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=rf"^nothing listens at --address 127\.0\.0\.1:{port} \(Connection refused\)\."):
        connect(f"127.0.0.1:{port}")
    with pytest.raises(UserError, match=r"^nothing listens at --address nowhere\.invalid:6379 \("):
        connect("nowhere.invalid:6379")
    for address in ("host:port", "nowhere"):
        with pytest.raises(UserError, match=rf"^nothing listens at --address {address} \(that is no HOST:PORT\)\."):
            connect(address)


def test_rays_client_is_refused() -> None:
    with pytest.raises(UserError, match=r"Ray's client cannot stream results\. Run this on a node of the cluster"):
        connect("ray://head:10001")


def test_what_listens_is_reached() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        reach(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionError("Version mismatch: 1 and 2.\nMore."), "Ray at a:1 cannot be used: Version mismatch: 1 and 2."),
        (ImportError("The remote function failed to import on the worker. x"), "a node cannot import longshort."),
        (TimeoutError("Is it so?"), "Ray at a:1 cannot be used: Is it so?"),
    ],
)
def test_the_cause_is_told_with_what_helps(error: Exception, told: str) -> None:
    assert told in connection._advice("a:1", error)
    assert "\n" not in connection._advice("a:1", error)


def test_a_token_that_is_asked_for_is_found_in_the_causes() -> None:
    error = ConnectionError("Failed to connect to Ray cluster at a:1")
    error.__cause__ = RuntimeError("ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken")
    assert connection._advice("a:1", error).startswith("Ray at a:1 asks for its token.")


def test_of_a_task_the_error_that_it_raised_is_told() -> None:
    error = RuntimeError("ray::f()\n  Traceback")
    error.cause = ValueError("what it was")  # type: ignore[attr-defined]  # as Ray has it
    assert first_line(error) == "what it was"
    assert first_line(RuntimeError()) == "RuntimeError"
