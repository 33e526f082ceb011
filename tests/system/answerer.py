"""Answerer: a server for containers. To who connects it says its name and whom it sees, at once and for each line."""

import contextlib
import os
import socket
import threading

PORT = 8080


def answer(connection: socket.socket, source: str) -> None:
    words = f"{os.uname().nodename} {source}\n".encode()
    with connection, contextlib.suppress(ConnectionError):
        connection.send(words)
        while connection.recv(100):
            connection.send(words)


def main() -> None:
    server = socket.create_server(("", PORT))
    while True:
        connection, (source, _) = server.accept()
        threading.Thread(target=answer, args=(connection, source), daemon=True).start()


if __name__ == "__main__":
    main()
