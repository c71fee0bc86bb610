"""Connects to a Ray cluster, or starts Ray on this machine; errors are reported on one line."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

from longshort.errors import UserError, first_line

SECONDS_TO_ANSWER = 5.0
SECONDS_FOR_TEST = 60.0
NOT_IMPORTED = ("No module named", "failed to import")  # texts of Ray, for a node without longshort
# Read when Ray is imported; each of its 20 tries takes up to 46 s and prints a line.
TRIES = "RAY_NUM_REDIS_GET_RETRIES"


def connect(address: str | None) -> Any:
    """Connect this process; return the module `ray`.

    Args:
        address: HOST:PORT of the cluster's head, or ``auto`` on one of its nodes. By default RAY_ADDRESS or, without
            it, Ray is started on this machine.

    Raises:
        UserError: Ray is not installed (kind "dependency"), the address cannot be used ("usage"), or the cluster does
            not answer, requires a token, or runs no tasks ("cluster").
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        raise UserError(
            f"Cannot use --address {address}: the Ray client does not stream results. Run the command on a node of the "
            "cluster, with the HOST:PORT of its head (the default port is 6379) or with auto.",
            "usage",
            "address",
        )
    is_local = address == "local"
    if not is_local:
        os.environ.setdefault(TRIES, "1")
        if address != "auto":
            _require_listener(address)
    try:
        import ray
    except ImportError as error:
        message = "Ray is not installed, but --engine ray requires it. Run: pip install 'longshort[ray]'"
        raise UserError(message, "dependency") from error
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.WARNING,
            include_dashboard=False if is_local else None,
        )
        if not is_local:
            _run_test_task(ray)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError, or a bare Exception after a timeout
        ray.shutdown()
        raise _cluster_error(address, error) from error
    return ray


def reach(address: str) -> None:
    """Open a connection to HOST:PORT and close it.

    Raises:
        OSError: nothing listens there.
        ValueError: the address does not have the form HOST:PORT.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("it is not HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_ANSWER).close()


def cause_of(error: BaseException) -> str:
    """Return the first line of an exception's message, or of its cause's where Ray wraps what a task raised."""
    return first_line(getattr(error, "cause", None) or error)[:200].rstrip(".)")


def _require_listener(address: str) -> None:
    try:
        reach(address)
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"No Ray cluster listens at --address {address} ({cause}). Use the HOST:PORT that "
            "'ray start --head' printed.",
            "cluster",
            "address",
        ) from error


def _run_test_task(ray: Any) -> None:
    """Run a task that streams, as workers do: where security differs, Ray connects but such a task never responds."""
    task = ray.remote(_test_task).options(num_cpus=0, num_returns="streaming", max_retries=0)
    stream = task.remote()
    ready, _ = ray.wait([stream], timeout=SECONDS_FOR_TEST, fetch_local=False)
    if not ready:
        raise TimeoutError(
            f"The test task did not respond within {SECONDS_FOR_TEST:.0f} s. Is RAY_AUTH_MODE the same here as where "
            "its nodes were started?"
        )
    ray.get(next(stream))


def _test_task() -> Iterator[None]:
    yield None


def _cluster_error(address: str, error: BaseException) -> UserError:
    """Why Ray cannot be used, and what to do. Ray passes on what nodes report only as text."""
    line = cause_of(error)
    if address == "local":
        return UserError(f"Cannot start Ray on this machine: {line}. Run the same command again.", "cluster")
    if _mentions(error, "AuthenticationError"):
        return UserError(
            f"Ray at {address} requires its token. Copy the head's ~/.ray/auth_token to the same place on this "
            "machine, set RAY_AUTH_MODE=token, then run the same command.",
            "cluster",
        )
    if _mentions(error, *NOT_IMPORTED):
        message = f"Ray at {address}: a node cannot import longshort. Install the same version on every node."
        return UserError(message, "dependency")
    return UserError(f"Cannot use Ray at {address}: {line}{'' if line.endswith('?') else '.'}", "cluster")


def _mentions(error: BaseException | None, *texts: str) -> bool:
    """Whether an exception or one of its causes is of such a class or has such a text."""
    while error is not None:
        if any(text in f"{type(error).__name__} {error}" for text in texts):
            return True
        error = error.__cause__
    return False
