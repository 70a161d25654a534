"""A proxy before a server that does to requests what a test tells it to."""

from __future__ import annotations

import http.client
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit


@dataclass
class Exchange:
    """A request that came through the proxy."""

    method: str
    path: str
    sent: int = 0
    """Bytes of the request's body that arrived."""
    received: int = 0
    """Bytes of the response's body that went back."""
    status: int | None = None
    """None where no answer was given."""


Fault = Literal["answer", "hang", "refuse", "cut", "lose"]


@dataclass
class _Rule:
    pattern: re.Pattern[str]
    fault: Fault
    number: int
    left: float  # requests that it still applies to
    skip: int = 0  # requests that pass before it applies
    every: int = 1  # of those after them, it applies to the first of so many
    json: bool = False  # the answer is MLflow's own form
    released: threading.Event = field(default_factory=threading.Event)


class Proxy:
    """A loopback HTTP proxy before a server, which does to requests what a test tells it to.

    A pattern is a regular expression, searched in "METHOD /path?query"; the first rule that matches
    and is not used up decides, and without one the request passes. `times` is the number of
    requests that a rule applies to.
    """

    def __init__(self, upstream: str) -> None:
        self._listener = _Listener(upstream)
        self.uri = f"http://127.0.0.1:{self._listener.server_address[1]}"
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()

    def answer(
        self, status: int, pattern: str = "", *, times: float = float("inf"), json: bool = False
    ) -> None:
        """Read such requests whole and answer with a status such as 500.

        The answer is a page, as a proxy gives it, or with `json` an error as MLflow's server does.
        """
        self._listener.add(pattern, "answer", status, times, json=json)

    def hang(self, pattern: str = "", *, times: float = float("inf")) -> None:
        """Never read nor answer such requests, until `clear` or the end of the test."""
        self._listener.add(pattern, "hang", 0, times)

    def refuse(self, pattern: str = "", *, times: float = float("inf")) -> None:
        """Close the connection of such requests."""
        self._listener.add(pattern, "refuse", 0, times)

    def cut(self, pattern: str = "", *, after: int, times: float = float("inf")) -> None:
        """Pass such requests, but close the connection after so many bytes of the response."""
        self._listener.add(pattern, "cut", after, times)

    def lose(self, pattern: str = "", *, times: float = 1, skip: int = 0, every: int = 1) -> None:
        """Have the server do what such requests ask for, and close the connection unanswered.

        The first `skip` requests that match pass; of the others the first of `every` is lost.
        """
        self._listener.add(pattern, "lose", 0, times, skip, every)

    def clear(self) -> None:
        """Forget all rules, and close what hangs; later requests pass."""
        self._listener.clear()

    def exchanges(self, pattern: str = "") -> list[Exchange]:
        """The requests that matched so far, in the order in which they came."""
        return [
            exchange
            for exchange in list(self._listener.exchanges)
            if re.search(pattern, f"{exchange.method} {exchange.path}")
        ]

    def forget(self) -> None:
        """Count from zero again."""
        self._listener.exchanges.clear()

    def close(self) -> None:
        self._listener.clear()
        self._listener.shutdown()
        self._listener.server_close()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # an upload that a test gave up on may still be under way

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.exchanges: list[Exchange] = []
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()

    def add(
        self,
        pattern: str,
        fault: Fault,
        number: int,
        times: float,
        skip: int = 0,
        every: int = 1,
        json: bool = False,
    ) -> None:
        rule = _Rule(re.compile(pattern), fault, number, times, skip, every, json)
        with self._lock:
            self._rules.append(rule)

    def clear(self) -> None:
        with self._lock:
            rules, self._rules = self._rules, []
        for rule in rules:
            rule.released.set()

    def rule_for(self, request: str) -> _Rule | None:
        with self._lock:
            for rule in self._rules:
                if rule.left > 0 and rule.pattern.search(request):
                    if rule.skip > 0:
                        rule.skip -= 1
                        continue
                    rule.left -= 1
                    rule.skip = rule.every - 1
                    return rule
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hung up, which they are made to do here."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Body:
    """The request's body, counted as it is read."""

    def __init__(self, handler: _Handler, exchange: Exchange) -> None:
        self._handler = handler
        self._left = int(handler.headers.get("Content-Length") or 0)
        self._exchange = exchange

    def read(self, size: int = 1 << 16) -> bytes:
        content = self._handler.rfile.read(min(size, self._left))
        self._left -= len(content)
        self._exchange.sent += len(content)
        if self._left and not content:
            raise ConnectionAbortedError("the client hung up in the middle of its request")
        return content


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def handle_request(self) -> None:
        exchange = Exchange(self.command, self.path)
        self.server.exchanges.append(exchange)
        rule = self.server.rule_for(f"{self.command} {self.path}")
        body = _Body(self, exchange)
        if "Transfer-Encoding" in self.headers:
            exchange.status = 411
            self.send_error(411, "this proxy only passes bodies that state their length")
            self.close_connection = True
        elif rule is None or rule.fault in ("cut", "lose"):
            cut_after = float("inf") if rule is None else rule.number
            self._pass(exchange, body, cut_after, lost=rule is not None and rule.fault == "lose")
        elif rule.fault == "answer":
            while body.read():
                pass
            exchange.status = rule.number
            if rule.number >= 400 and rule.json:
                self._answer_as_mlflow(rule.number)
            else:
                self.send_error(rule.number, "the test wants it so")
        else:
            if rule.fault == "hang":
                rule.released.wait()
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request

    def _pass(self, exchange: Exchange, body: _Body, cut_after: float, *, lost: bool) -> None:
        upstream = http.client.HTTPConnection(self.server.upstream)
        try:
            headers = {
                name: value
                for name, value in self.headers.items()
                if name.lower() not in ("host", "connection", "keep-alive", "expect")
            }
            has_body = "Content-Length" in self.headers
            upstream.request(self.command, self.path, body if has_body else None, headers)
            response = upstream.getresponse()
            if lost:
                response.read()
                self.close_connection = True
                return
            exchange.status = response.status
            self._send_back(response, exchange, cut_after)
        except (OSError, http.client.HTTPException):
            self.close_connection = True
        finally:
            upstream.close()

    def _answer_as_mlflow(self, status: int) -> None:
        code = {404: "RESOURCE_DOES_NOT_EXIST"}.get(status, "INVALID_PARAMETER_VALUE")
        content = json.dumps({"error_code": code, "message": "the test wants it so"}).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _send_back(
        self, response: http.client.HTTPResponse, exchange: Exchange, cut_after: float
    ) -> None:
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in ("connection", "keep-alive", "transfer-encoding"):
                self.send_header(name, value)
        chunked = response.length is None
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while exchange.received < cut_after and (
            content := response.read(int(min(1 << 16, cut_after - exchange.received)))
        ):
            exchange.received += len(content)  # before the client, who may ask at once, has it
            self.wfile.write(b"%x\r\n%b\r\n" % (len(content), content) if chunked else content)
        if exchange.received >= cut_after or response.length:
            self.close_connection = True
        elif chunked:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep the tests' output free of requests."""
