"""Servers on this machine: MLflow's, and others in front of it or in its place."""

import base64
import datetime
import http.client
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

USER, PASSWORD = "ada", "s3cr3t-pass/wörd"
NOTHING_FOUND = b'{"experiments": []}'  # MLflow's answer to a search among none
OTHER = b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\nContent-Length: 12\r\n\r\n<html>hello!"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """MLflow's own server on a database in `folder`; its address."""
    port = free_port()
    options = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--default-artifact-root", str(folder / "files")]
    line = [sys.executable, "-m", "mlflow", "server", *options, "--port", str(port), "--workers", "1"]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(line, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                urlopen(f"{address}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextmanager
def guarded(behind: str | None = None, certificate: Path | None = None) -> Iterator[str]:
    """A server that lets USER in with PASSWORD only; its address, without them.

    Args:
        behind: the address of the server whose answers it gives; without one it is an MLflow that has nothing.
        certificate: a file with its key and certificate, for TLS.
    """
    expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    class Guard(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != expected:
                self.reply(401, b"You are not authenticated.", "text/plain")
            elif behind is None:
                self.reply(200, NOTHING_FOUND, "application/json")
            else:
                server = http.client.HTTPConnection(behind.removeprefix("http://"), timeout=60)
                kept = {k: v for k, v in self.headers.items() if k.lower() in ("content-type", "accept")}
                server.request(self.command, self.path, body or None, kept)
                found = server.getresponse()
                self.reply(found.status, found.read(), found.getheader("Content-Type", "text/plain"))

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

        def reply(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Guard)
    server.daemon_threads = True
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def answering(answer: bytes | None) -> Iterator[str]:
    """Something that takes every connection and gives one fixed answer, or none and stays silent; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        held: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                held.append(connection)
                if answer is not None:
                    connection.recv(4096)
                    connection.sendall(answer)
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        for connection in held:
            connection.close()


@contextmanager
def another_http2_service() -> Iterator[str]:
    """Something that speaks HTTP/2 and knows none of the paths that it is asked for, as a web server; HOST:PORT."""
    headers, settings, ended = 1, 4, 5  # types of frames; END_STREAM and END_HEADERS

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

    class Answer(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(frame(settings, 0, 0, b""))
            self.rfile.read(24)  # the client's preface
            while head := self.rfile.read(9):
                self.rfile.read(int.from_bytes(head[:3], "big"))
                if head[3] == headers:  # 0x8d: HPACK's ":status: 404"
                    self.wfile.write(frame(headers, ended, int.from_bytes(head[5:], "big"), b"\x8d"))

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that went away is none."""

    # on all addresses: Ray asks at the machine's own where it is told of 127.0.0.1
    with Server(("", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def own_certificate(folder: Path) -> Path:
    """A key and a certificate for 127.0.0.1 that nobody else has signed, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = folder / "own.pem"
    file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return file
