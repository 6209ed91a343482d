"""Static content, compressed once instead of at every request. Gateway process."""

import gzip
import hashlib

from flask import Response, request


class CompressedContent:
    """Bytes of one media type, plain and by gzip."""

    def __init__(self, content: bytes, kind: str) -> None:
        self.kind, self._plain = kind, content
        self._compressed = gzip.compress(content, mtime=0)
        self.digest = hashlib.sha256(content).hexdigest()

    def response(self, **headers: str) -> Response:
        """Return a response with the encoding that the current request accepts."""
        compressed = request.accept_encodings.quality("gzip") > 0 and len(self._compressed) < len(self._plain)
        response = Response(self._compressed if compressed else self._plain, mimetype=self.kind, headers=headers)
        response.headers["Vary"] = "Accept-Encoding"
        if compressed:
            response.headers["Content-Encoding"] = "gzip"
        return response
