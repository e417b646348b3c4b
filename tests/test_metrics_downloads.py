"""The question whether there is a network: any answer counts, and silence ends soon."""

import http.server
import socket
import threading
import time

import pytest

from vidpred.downloads import reachable


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_any_answer_counts_even_an_error():
    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(403)

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert reachable(f"http://127.0.0.1:{server.server_port}/file")
        server.shutdown()


def test_silence_ends_soon():
    with socket.socket() as silent:  # accepts connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        assert not reachable(f"http://127.0.0.1:{silent.getsockname()[1]}/", seconds=0.3)
        assert time.monotonic() - began < 2


def test_nobody_there():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        assert not reachable(f"http://127.0.0.1:{taken.getsockname()[1]}/", seconds=2)
