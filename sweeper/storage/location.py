"""The location of results: a local folder, or a path in a bucket. URIs, their options, and messages without secrets."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from sweeper.errors import UserError

_TEMPORARY = re.compile(r"\..*\.tmp")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_OPTIONS = {
    "s3": ("region", "scheme", "endpoint_override", "force_virtual_addressing", "tls_ca_file_path", "session_token"),
    "gs": ("scheme", "endpoint_override", "project_id"),
}
_SECRET_OPTIONS = ("session_token",)


@dataclass(frozen=True)
class BucketPath:
    """A path in a bucket, given as `s3://key:secret@bucket/path?option=value`."""

    uri: str = field(repr=False)
    """As given, including secrets."""
    shown: str
    """Without secrets."""
    scheme: str
    bucket: str
    path: str
    """Path inside the bucket, without leading and trailing slashes."""
    options: dict[str, str] = field(repr=False)
    user: str | None = field(repr=False)
    """The access key, or `anonymous`."""
    password: str | None = field(repr=False)
    """The secret key."""

    def without_secrets(self, text: str) -> str:
        """The text with *** in place of each secret of this location."""
        secrets = [self.user, self.password, *(self.options.get(option) for option in _SECRET_OPTIONS)]
        url = urlsplit(self.uri)
        for secret in filter(None, (*secrets, url.username, url.password)):
            text = text.replace(secret, "***")
        return text


def parse(given: str) -> Path | BucketPath:
    """Parse a location that a user wrote.

    Raises:
        UserError: the location is not text, its scheme or an option is unknown, or it names no bucket.
    """
    if "\0" in given or not is_text(given):
        raise UserError(
            f"{given!r} is not a valid location for results: it has a NUL, or bytes that are not UTF-8 text. Name another."
        )
    scheme = _SCHEME.match(given)
    if scheme is None:
        return Path(given)
    return _local_folder(given) if scheme[1] == "file" else _bucket_path(given, scheme[1])


def check_name(name: str) -> None:
    """Refuse names that could lead outside the store.

    Raises:
        ValueError: the name is not a plain relative path.
    """
    if not {"", ".", ".."}.isdisjoint(name.split("/")) or "\\" in name or "\0" in name:
        raise ValueError(
            f"{name!r} is not a valid file name in a store; it must be a relative path without '..' and '\\'"
        )


def is_text(name: str) -> bool:
    """Whether a name is text. File names can contain other bytes, which Python shows as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_file_name(name: str) -> bool:
    """Whether a name from a listing can be passed to a `Storage`."""
    return name not in (".", "..") and "\\" not in name and is_text(name)


def is_temporary(name: str) -> bool:
    """Whether the name is that of an unfinished file; listings leave these out."""
    return _TEMPORARY.fullmatch(name) is not None


def _local_folder(uri: str) -> Path:
    url = _split(uri, "file")
    if url.netloc not in ("", "localhost") or not url.path.startswith("/"):
        raise UserError(f"{uri!r} names another machine. Write file:///path, or the path alone.")
    return Path(unquote(url.path))


def _split(uri: str, scheme: str) -> SplitResult:
    try:
        return urlsplit(uri)
    except ValueError:  # brackets, as in an IPv6 address, or characters that normalize to others
        raise UserError(
            f"The {scheme}:// URI cannot be parsed: before the path it may have letters, digits, '-' and '.' only."
        ) from None


def _bucket_path(uri: str, scheme: str) -> BucketPath:
    # Messages here must not repeat the URI, because it can contain credentials in unexpected places.
    if scheme not in _OPTIONS:
        raise UserError(
            f"Unknown scheme '{scheme}://' for the results' location. Allowed: a folder, s3://bucket/path, gs://bucket/path."
        )
    url = _split(uri, scheme)
    bucket = url.netloc.rpartition("@")[2]
    if not _BUCKET.fullmatch(bucket):
        raise UserError(
            f"The {scheme}:// URI names no bucket. Write {scheme}://bucket/path. In a key or secret write / as %2F, ? as %3F, "
            "# as %23, @ as %40."
        )
    try:
        # A plus sign is literal, because tokens contain it.
        pairs = parse_qsl(url.query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=bool(url.query))
    except ValueError:
        raise UserError(
            f"The options of the {scheme}:// URI cannot be parsed. Write {scheme}://bucket/path?option=value&option=value."
        ) from None
    if url.fragment:
        raise UserError(f"The {scheme}:// URI has a '#'. Write %23 for one in a name.")
    options = dict(pairs)
    for option in options:
        if option not in _OPTIONS[scheme]:
            raise UserError(
                f"Unknown option '{option}' of a {scheme}:// URI. Available: {', '.join(_OPTIONS[scheme])}."
            )
    shown_options = {name: "***" if name in _SECRET_OPTIONS else value for name, value in options.items()}
    shown_netloc = f"***@{bucket}" if "@" in url.netloc else url.netloc
    shown = urlunsplit((scheme, shown_netloc, url.path, urlencode(shown_options, safe="*:/"), ""))
    path = unquote(url.path).strip("/")
    try:
        check_name("/".join(filter(None, (bucket, path))))
    except ValueError:
        raise UserError(f"{shown} has '..', '.', '//' or '\\' in its path. Write it without.") from None
    return BucketPath(
        uri=uri,
        shown=shown,
        scheme=scheme,
        bucket=bucket,
        path=path,
        options=options,
        user=unquote(url.username) if url.username else None,
        password=unquote(url.password) if url.password else None,
    )
