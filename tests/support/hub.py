"""A stand-in for the Hugging Face hub's HTTP interface: repositories, commits and downloads."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """Repositories in memory, served on a local port.

    ``files`` has a dict of file names and bytes for each repository; ``refuse`` is a status that
    every commit is answered with, where it is set.
    """

    def __init__(self):
        self.files = {}
        self.refuse = None
        self.requests = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def commit_of(self, repo):
        state = json.dumps({n: hashlib.sha1(b).hexdigest() for n, b in self.files[repo].items()})
        return hashlib.sha1(state.encode()).hexdigest()


def _handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status, value=b"", **headers):
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in headers.items():
                self.send_header(name.replace("_", "-"), text)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def body(self):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def do_POST(self):
            body = self.body()
            hub.requests.append(("POST", self.path))
            if self.path == "/api/repos/create":
                given = json.loads(body)
                owner = given.get("organization") or "me"
                name = f"{owner}/{given['name']}"
                if name in hub.files:
                    return self.answer(409, {"url": f"{hub.endpoint}/{name}"})
                hub.files[name] = {}
                return self.answer(200, {"url": f"{hub.endpoint}/{name}"})
            if self.path == "/api/validate-yaml":
                return self.answer(200, {"warnings": [], "errors": []})
            if found := re.fullmatch(r"/api/models/(.+)/preupload/[^/]+", self.path):
                wanted = json.loads(body)["files"]
                modes = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in wanted
                ]
                return self.answer(200, {"files": modes})
            if found := re.fullmatch(r"/api/models/(.+)/commit/[^/]+", self.path):
                if hub.refuse is not None:
                    return self.answer(hub.refuse, {"error": "no"})
                repo = found[1]
                for line in map(json.loads, body.decode().splitlines()):
                    if line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        hub.files[repo][line["value"]["path"]] = content
                oid = hub.commit_of(repo)
                done = {"commitUrl": f"{hub.endpoint}/{repo}/commit/{oid}", "commitOid": oid}
                return self.answer(200, {**done, "success": True})
            return self.answer(404, {"error": self.path})

        def do_GET(self):
            hub.requests.append((self.command, self.path))
            found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path)
            if found is None or found[1] not in hub.files:
                return self.answer(404, b"", X_Error_Code="RepoNotFound")
            content = hub.files[found[1]].get(found[2])
            if content is None:
                return self.answer(404, b"", X_Error_Code="EntryNotFound")
            mark = hashlib.sha1(content).hexdigest()
            commit = hub.commit_of(found[1])
            return self.answer(200, content, ETag=f'"{mark}"', X_Repo_Commit=commit)

        do_HEAD = do_GET

    return Handler
