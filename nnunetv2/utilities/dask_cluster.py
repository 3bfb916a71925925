"""Calls of one function spread over the workers of a Dask cluster, which may join, leave and be killed meanwhile.

Needs the extra ``cluster`` (dask, distributed). The workers see the same files under the same paths and have the same version of this
package. A call that a lost worker was at is made again by another one, so calls must be safe to repeat.
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nnunetv2.utilities.versions import package_version

if TYPE_CHECKING:
    import distributed

SECONDS_TO_CONNECT = 30
SECONDS_BETWEEN_LOOKS = 5
# Calls that the scheduler knows beyond those that its workers are at: enough to keep them busy, few enough to stay cheap.
CALLS_IN_RESERVE = 16
CALLS_PER_THREAD = 3
PREFIX_OF_VARIABLES = "nnUNet_"


@dataclass(frozen=True)
class LostTask:
    """A call whose workers died again and again."""

    message: str


class ClusterError(RuntimeError):
    """The cluster cannot be used, or was lost."""


def run_on_cluster(address: str, function: Callable[..., Any], calls: Sequence[tuple], names: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Yield ``(index, result)`` of ``function(*calls[index])`` as calls finish; a :class:`LostTask` or an exception in place of a result.

    Args:
        address: Of the scheduler, such as ``tcp://node1:8786``, or a scheduler file (``.json``).
        function: Importable by the workers.
        calls: Arguments.
        names: Of the calls, for Dask's dashboard and for messages.

    Raises:
        ClusterError: If Dask is not installed, or the scheduler cannot be reached or was lost.
    """
    client = connect(address)
    log = logging.getLogger("distributed.client")  # would show a traceback where the scheduler is lost, beside our message
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        _say_what_there_is(client, address)
        waiting = deque(range(len(calls)))
        lost = yield from _work_off(client, address, function, calls, names, waiting, at_once=None)
        # A call may have died with another one that a worker was given together with it; alone, only the guilty one dies again.
        for index in lost:
            died = yield from _work_off(client, address, function, calls, names, deque([index]), at_once=1)
            if died:
                yield (
                    index,
                    LostTask(
                        f"the workers that were given {names[index]} died one after the other, also when it was the only call. Most likely memory "
                        "ran out: give workers more memory (--memory-limit of `dask worker`, the memory of the job), or run fewer on a machine."
                    ),
                )
    except OSError as error:  # errors of the calls come as results: this is the connection
        raise ClusterError(_lost_message(address)) from error
    finally:
        client.close()
        log.setLevel(level)


def connect(address: str) -> distributed.Client:
    """A connection to a scheduler.

    Raises:
        ClusterError: If Dask is missing or the scheduler does not answer.
    """
    try:
        import distributed
    except ImportError as error:
        raise ClusterError('--scheduler needs Dask. Install it here and on every worker: pip install "nnunetv2[cluster]".') from error
    where = {"scheduler_file": address} if address.endswith(".json") else {"address": address}
    if "scheduler_file" in where and not os.path.isfile(address):
        raise ClusterError(f"There is no scheduler file {address}. Start the scheduler first: dask scheduler --scheduler-file {address}.")
    try:
        return distributed.Client(**where, timeout=SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError, KeyError) as error:
        raise ClusterError(
            f"No Dask scheduler answers at {address} ({error or type(error).__name__}). Expected an address such as tcp://node1:8786, or a "
            "scheduler file; start one with `dask scheduler`."
        ) from error


def _work_off(
    client: distributed.Client,
    address: str,
    function: Callable[..., Any],
    calls: Sequence[tuple],
    names: Sequence[str],
    waiting: deque[int],
    at_once: int | None,
) -> Generator[tuple[int, Any], None, list[int]]:
    """Work off ``waiting``; returns the calls whose workers died too often."""
    import distributed

    version, variables = package_version(), _variables()
    pending: dict[distributed.Future, int] = {}
    lost: list[int] = []
    most, looked, idle = at_once or CALLS_IN_RESERVE, 0.0, False
    while waiting or pending:
        if time.monotonic() - looked > SECONDS_BETWEEN_LOOKS:
            threads = sum(client.nthreads().values())
            most = at_once or threads * CALLS_PER_THREAD + CALLS_IN_RESERVE
            if not threads and not idle:
                print(f"The cluster at {address} has no workers; waiting for some to join.", flush=True)
            looked, idle = time.monotonic(), not threads
        while waiting and len(pending) < most:
            index = waiting.popleft()
            key = f"{names[index]}-{secrets.token_hex(8)}"
            call = (version, variables, function, calls[index])
            pending[client.submit(_call_in_worker, *call, key=key, pure=False)] = index
        try:
            with client.as_current():
                done = distributed.wait(list(pending), timeout=SECONDS_BETWEEN_LOOKS, return_when="FIRST_COMPLETED").done
        except distributed.TimeoutError:  # of asyncio, which is the usual one only from Python 3.11 on
            continue
        except distributed.CancelledError as error:
            raise ClusterError(_lost_message(address)) from error
        for future in done:
            index = pending.pop(future)
            try:
                result = future.result()
            except distributed.KilledWorker:
                lost.append(index)
                continue
            except distributed.CancelledError as error:
                raise ClusterError(_lost_message(address)) from error
            except Exception as error:
                result = error
            yield index, result
    return lost


def _lost_message(address: str) -> str:
    return f"The Dask scheduler at {address} was lost or restarted. Cases that are finished are kept; run the command again for the others."


def _say_what_there_is(client: distributed.Client, address: str) -> None:
    threads = list(client.nthreads().values())
    if threads:
        print(
            f"Dask cluster at {address}: {len(threads)} worker{'s' if len(threads) > 1 else ''}, {sum(threads)} cases at a time.",
            flush=True,
        )


def _call_in_worker(version: str, variables: dict[str, str], function: Callable[..., Any], arguments: tuple) -> Any:
    """One call, in the worker."""
    here = package_version()
    if here != version:
        raise ClusterError(
            f"The worker on {platform.node()} has nnunetv2 {here}, the command that asks it {version}. Install the same version everywhere."
        )
    os.environ.update(variables)  # where custom trainers and readers are looked for
    return function(*arguments)


def _variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(PREFIX_OF_VARIABLES)}
