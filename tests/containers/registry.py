"""The smallest registry of images: one image, `app:1`, over HTTP on this machine, for whoever knows the password."""

import base64
import gzip
import hashlib
import io
import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


class Registry:
    """Serves until `close`. `image` is the name to pull."""

    def __init__(self, login: str = "") -> None:
        """`login` is `user:password`; empty: anybody may pull."""
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as tar:
            entry = tarfile.TarInfo("file")
            entry.size = 1 << 20
            tar.addfile(entry, io.BytesIO(bytes(1 << 20)))
        packed = gzip.compress(layer.getvalue())
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Cmd": ["/file"]},
                "rootfs": {"type": "layers", "diff_ids": [digest(layer.getvalue())]},
                "history": [{"created_by": "test"}],
            }
        ).encode()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": _described("application/vnd.docker.container.image.v1+json", config),
                "layers": [_described("application/vnd.docker.image.rootfs.diff.tar.gzip", packed)],
            }
        ).encode()
        self.digest = digest(manifest)
        blobs = {digest(blob): blob for blob in (config, packed)}
        files = {f"/v2/app/blobs/{name}": (blob, "application/octet-stream") for name, blob in blobs.items()}
        files |= {f"/v2/app/manifests/{name}": (manifest, MANIFEST) for name in ("1", self.digest)}
        files["/v2/"] = (b"{}", "application/json")
        wanted = f"Basic {base64.b64encode(login.encode()).decode()}"

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                status, (body, kind) = 200, files.get(self.path, (b"", ""))
                if login and self.headers.get("Authorization") != wanted:
                    status, body, kind = (
                        401,
                        b'{"errors":[{"code":"UNAUTHORIZED","message":"who?"}]}',
                        "application/json",
                    )
                elif not body:
                    status, body, kind = 404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}', "application/json"
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
                self.send_header("Docker-Content-Digest", digest(body))
                if status == 401:
                    self.send_header("WWW-Authenticate", 'Basic realm="test"')
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.image = f"127.0.0.1:{self._server.server_address[1]}/app:1"

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def digest(data: bytes) -> str:
    """The name of these bytes in a registry."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _described(kind: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "size": len(blob), "digest": digest(blob)}
