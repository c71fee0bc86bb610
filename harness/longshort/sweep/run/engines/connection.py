"""Connects to a Ray cluster, or starts Ray on this machine; what is wrong is told in a line."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

from longshort.errors import UserError

SECONDS_TO_ANSWER = 5.0
SECONDS_FOR_TRIAL = 60.0
TRIES = "RAY_NUM_REDIS_GET_RETRIES"  # read when Ray is imported; of its 20 each takes up to 46 s and prints a line


def connect(address: str | None) -> Any:
    """Connect this process; return the module `ray`.

    Args:
        address: HOST:PORT of the cluster's head, or ``auto`` on one of its nodes. By default RAY_ADDRESS or, without
            it, Ray is started on this machine.

    Raises:
        UserError: Ray is not installed, or the cluster does not answer, asks for a token or runs nothing.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        raise UserError(
            f"--address {address}: Ray's client cannot stream results. Run this on a node of the cluster, with the "
            "HOST:PORT of its head (its port is 6379, unless it was given another) or auto."
        )
    is_local = address == "local"
    if not is_local:
        os.environ.setdefault(TRIES, "1")
        if address != "auto":
            _require_listener(address)
    try:
        import ray
    except ImportError as error:
        raise UserError("--engine ray needs Ray: pip install 'longshort[ray]'.") from error
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.WARNING,
            include_dashboard=False if is_local else None,
        )
        if not is_local:
            _try(ray)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError, or a bare Exception after a timeout
        ray.shutdown()
        raise UserError(_advice(address, error)) from error
    return ray


def reach(address: str) -> None:
    """Open a connection to HOST:PORT and close it.

    Raises:
        OSError: nothing listens there.
        ValueError: that is no HOST:PORT.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("that is no HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_ANSWER).close()


def first_line(error: BaseException) -> str:
    """What an exception says, in short; of Ray's for one that a task raised, what that says."""
    error = getattr(error, "cause", None) or error
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(".)")


def _require_listener(address: str) -> None:
    try:
        reach(address)
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"nothing listens at --address {address} ({cause}). Give HOST:PORT as 'ray start --head' printed it."
        ) from error


def _try(ray: Any) -> None:
    """A task that streams, as ours do: where security differs, Ray connects but such a task is never heard of."""
    task = ray.remote(_trial).options(num_cpus=0, num_returns="streaming", max_retries=0)
    stream = task.remote()
    ready, _ = ray.wait([stream], timeout=SECONDS_FOR_TRIAL, fetch_local=False)
    if not ready:
        raise TimeoutError(
            f"a trial task was not heard of in {SECONDS_FOR_TRIAL:.0f} s. Is RAY_AUTH_MODE the same here as where "
            "its nodes were started?"
        )
    ray.get(next(stream))


def _trial() -> Iterator[None]:
    yield None


def _advice(address: str, error: BaseException) -> str:
    if address == "local":
        return f"Ray cannot be started on this machine: {first_line(error)}. Run the same command again."
    told = ""
    cause: BaseException | None = error
    while cause is not None:
        told, cause = f"{told} {type(cause).__name__} {cause}", cause.__cause__
    if "AuthenticationError" in told:
        return (
            f"Ray at {address} asks for its token. Put the head's ~/.ray/auth_token in the same place here, "
            "set RAY_AUTH_MODE=token, then run the same command."
        )
    if "No module named" in told or "failed to import" in told:
        return f"Ray at {address}: a node cannot import longshort. Install the same on every node."
    end = "" if (line := first_line(error)).endswith("?") else "."
    return f"Ray at {address} cannot be used: {line}{end}"
