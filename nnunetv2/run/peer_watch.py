"""Ends the processes of a distributed training soon after one of them has failed, wherever they wait, on whatever machine.

A process that waits for the gradients of a dead one waits for minutes or for ever. Each process therefore holds a connection to the first
one. The operating system closes the connections of a process that ends, however it ends: no heartbeat is missed by a busy process.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import secrets
import selectors
import socket
import sys
import threading
from datetime import timedelta
from typing import Any

import torch

STORE_KEY = "nnunetv2/peer_watch"
LOOPBACK = "127.0.0.1"
CONNECT_SECONDS = 300.0  # until the last process has come; machines load programs at different speeds
GRACE_SECONDS = 10.0  # for a process to end by itself, through an error, before it is ended
CONSEQUENCE_SECONDS = 2.0  # within which the failure that caused an error of another process is known
LOST_SECONDS = 5.0  # the same where the error itself says that another process is gone
# Seconds of silence, between two questions and number of questions after which a machine that does not answer is given up.
KEEP_ALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}


class PeerFailure(RuntimeError):
    """Another process of this training failed; the message says which and why."""


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error only says that another process of the group cannot be reached, of which it may be the end or the fault."""
    # gloo has no exception of its own, but names its source file.
    is_of_gloo = isinstance(error, RuntimeError) and re.match(r"\[[^]]*(gloo|pair\.cc)[^]]*\]|Gloo\b", str(error)) is not None
    return isinstance(error, torch.distributed.DistError) or is_of_gloo


class PeerWatch:
    """Watches the other processes from a thread of its own.

    Args:
        store: The store through which the processes find each other.
        rank: Number of this process; the first one, 0, is connected with all others.
        world_size: Number of processes.
        address: Of the machine of the first process.
        is_one_machine: Whether all processes are on it.

    Raises:
        ConnectionError: If a process cannot be reached.
    """

    def __init__(self, store: Any, rank: int, world_size: int, address: str, is_one_machine: bool) -> None:
        self.rank, self.world_size = rank, world_size
        self.name = f"process {rank} of {world_size} ({socket.gethostname()}, pid {os.getpid()})"
        self.failure: str | None = None
        self._failed = threading.Event()
        self._ended = threading.Event()  # this process ends by itself
        self._peers: dict[socket.socket, _Peer] = {}
        self._lock = threading.Lock()
        if rank == 0:
            self._accept_all(store, LOOPBACK if is_one_machine else address, _listener(is_one_machine))
        else:
            self._connect_to_first(store)
        self._thread = threading.Thread(target=self._watch, name="nnunetv2-peer-watch", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Tell the others that this process ends as it should, and hear the same from them."""
        self._ended.set()
        self._tell(finished=True)
        for connection in self._peers:
            with contextlib.suppress(OSError):  # the other end is gone
                connection.shutdown(socket.SHUT_WR)
        self._thread.join(GRACE_SECONDS)

    def fail(self, error: BaseException) -> None:
        """Tell the others that this process ends with an error.

        Raises:
            PeerFailure: If the error is a consequence of what happened to another process.
        """
        # What torch says when a process is gone says nothing about why.
        if isinstance(error, RuntimeError):
            self._failed.wait(LOST_SECONDS if is_lost_connection(error) else CONSEQUENCE_SECONDS)
        self._ended.set()
        if self.failure is not None:
            raise PeerFailure(self._consequence()) from None
        self._tell(failed=f"{self.name} failed: {type(error).__name__}: {error}")

    # --- connections

    def _accept_all(self, store: Any, address: str, listener: socket.socket) -> None:
        token = secrets.token_hex(16)  # keeps others out that find the port
        store.set(STORE_KEY, json.dumps({"address": address, "port": listener.getsockname()[1], "token": token}))
        listener.settimeout(CONNECT_SECONDS)
        with listener:
            while len(self._peers) < self.world_size - 1:
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    raise ConnectionError(
                        f"Only {len(self._peers) + 1} of {self.world_size} processes came within {CONNECT_SECONDS:.0f} s. See what the others say."
                    ) from None
                peer = _Peer()
                connection.settimeout(CONNECT_SECONDS)
                hello, *peer.early_messages = peer.messages_of(connection, until_first=True) or [{}]
                if hello.get("token") != token:
                    connection.close()
                    continue
                peer.name = str(hello.get("name"))
                self._add(connection, peer)

    def _connect_to_first(self, store: Any) -> None:
        store.wait([STORE_KEY], timedelta(seconds=CONNECT_SECONDS))
        found = json.loads(store.get(STORE_KEY))
        try:
            connection = socket.create_connection((found["address"], found["port"]), timeout=CONNECT_SECONDS)
        except OSError as error:
            raise ConnectionError(
                f"{self.name} cannot reach the first process at {found['address']}, port {found['port']}: {error}. Machines that train together need "
                "free connections among each other."
            ) from error
        _send(connection, {"token": found["token"], "name": self.name})
        self._add(connection, _Peer(f"process 0 of {self.world_size}"))

    def _add(self, connection: socket.socket, peer: _Peer) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEP_ALIVE.items():
            if hasattr(socket, option):  # not on every system
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._peers[connection] = peer

    def _tell(self, **message: Any) -> None:
        """Send to all connected processes; those that are gone need not know."""
        with self._lock:
            for connection in list(self._peers):
                with contextlib.suppress(OSError):
                    _send(connection, message)

    # --- the thread

    def _watch(self) -> None:
        for peer in self._peers.values():
            self._take_in(peer, peer.early_messages)
        launcher = multiprocessing.parent_process() if os.name == "posix" else None
        with selectors.DefaultSelector() as selector:
            for connection in self._peers:
                selector.register(connection, selectors.EVENT_READ)
            if launcher is not None:
                selector.register(launcher.sentinel, selectors.EVENT_READ)
            while not all(peer.is_gone for peer in self._peers.values()):
                for key, _ in selector.select():
                    if not isinstance(key.fileobj, socket.socket):
                        selector.unregister(key.fileobj)
                        self._on_failure("the process that started this one ended")
                    elif not self._listen_to(key.fileobj):
                        selector.unregister(key.fileobj)

    def _listen_to(self, connection: socket.socket) -> bool:
        """Take in what a process says; False once it is gone."""
        peer = self._peers[connection]
        self._take_in(peer, peer.messages_of(connection))
        if peer.is_gone and not peer.has_finished:
            self._on_failure(
                f"{peer.name} ended without a word. It may have been killed, for example for lack of memory, or its machine is not reachable"
            )
        return not peer.is_gone

    def _take_in(self, peer: _Peer, messages: list[dict[str, Any]]) -> None:
        for message in messages:
            peer.has_finished = True  # it has said everything
            if "failed" in message:
                self._on_failure(str(message["failed"]))

    def _on_failure(self, cause: str) -> None:
        if self._failed.is_set():
            return
        self.failure = cause
        self._failed.set()
        if self.rank == 0:
            self._tell(failed=cause)
        threading.Thread(target=self._end_if_stuck, name="nnunetv2-end", daemon=True).start()

    def _end_if_stuck(self) -> None:
        """End this process, if the failure of the other one does not reach it."""
        if self._ended.wait(GRACE_SECONDS):
            return
        print(f"\nError: {self._consequence()}", file=sys.stderr, flush=True)
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(1)

    def _consequence(self) -> str:
        return f"{self.name} stops, because {self.failure}"


class _Peer:
    """What is known about the process at the other end of a connection."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.has_finished = False
        self.is_gone = False
        self.early_messages: list[dict[str, Any]] = []  # that came together with the first one
        self._received = b""

    def messages_of(self, connection: socket.socket, until_first: bool = False) -> list[dict[str, Any]]:
        """Messages that have arrived; waits for some bytes, with ``until_first`` for a whole message."""
        while True:
            try:
                received = connection.recv(65536)
            except OSError:
                received = b""
            self.is_gone = not received
            *lines, self._received = (self._received + received).split(b"\n")
            if lines or self.is_gone or not until_first:
                return [message for line in lines if isinstance(message := _parsed(line), dict)]


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _listener(is_one_machine: bool) -> socket.socket:
    """Listens for this machine alone, or at all addresses: the others may know this machine by one that its own name does not lead to."""
    if is_one_machine:
        return socket.create_server((LOOPBACK, 0))
    with contextlib.suppress(OSError, ValueError):  # no IPv6 here
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))
