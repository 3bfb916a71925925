"""Download a zip file with trained models and install it."""

from __future__ import annotations

import http.client
import os
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from nnunetv2.model_sharing.model_import import InstalledModels, ModelZipError, install_model_from_zip_file
from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.file_io import TEMPORARY_PREFIX, atomic_path
from nnunetv2.utilities.versions import package_version

if TYPE_CHECKING:
    from http.client import HTTPResponse

SCHEMES = ("https", "http")
TIMEOUT_SECONDS = 60  # without a single byte
DEFAULT_CHUNK_BYTES = 8192 * 16


class DownloadError(RuntimeError):
    """A file could not be downloaded."""


def download_and_install_from_url(url: str, overwrite: bool = False, sha256: str | None = None) -> InstalledModels:
    """Download a zip file with trained models and install it into ``nnUNet_results``; the zip file is removed again.

    Args:
        url: ``https://...`` or ``http://...``.
        overwrite: Whether models of the same name are replaced.
        sha256: What the author of the file says about it; None: not checked.

    Raises:
        DownloadError: If the file cannot be downloaded.
        ModelZipError: If it is no zip file with models, or not the one that was meant.
        FileExistsError: If a model of the same name is there, unless it may be replaced.
    """
    # On the disk that the model has to fit on anyway; home directories are often small.
    results = Path(nnUNet_results.require())
    results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=results) as temporary:
        file = download_file(url, os.path.join(temporary, "download.zip"))
        try:
            return install_model_from_zip_file(file, overwrite, sha256)
        except ValueError as error:
            raise ModelZipError(str(error).replace(file, url)) from error


def download_file(url: str, local_filename: str, chunk_size: int | None = DEFAULT_CHUNK_BYTES) -> str:
    """Download a file, whether or not the server says how long it is.

    Args:
        url: ``https://...`` or ``http://...``; redirections are followed.
        local_filename: Where to; appears when everything is there.
        chunk_size: Bytes to read at a time.

    Returns:
        ``local_filename``.

    Raises:
        DownloadError: With the answer of the server.
    """
    _check_scheme(url)
    request = urllib.request.Request(url, headers={"User-Agent": f"nnunetv2/{package_version()}"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            _check_scheme(response.geturl())
            with atomic_path(local_filename) as temporary:
                _write(response, temporary, chunk_size or DEFAULT_CHUNK_BYTES, url)
    except urllib.error.HTTPError as error:
        raise DownloadError(f"{url} was not downloaded: the server answers {error.code} {error.reason}. Check the address.") from error
    except urllib.error.URLError as error:
        raise DownloadError(f"{url} was not downloaded: {error.reason}. Check the address and the connection.") from error
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise DownloadError(f"The download of {url} broke off: {error or type(error).__name__}. Try it again.") from error
    return local_filename


def _check_scheme(url: str) -> None:
    """Raise DownloadError unless the address is one of the web: others would read local files."""
    if urllib.parse.urlsplit(url).scheme.lower() not in SCHEMES:
        raise DownloadError(
            f"{url!r} is no address of the web; expected https://... A file that is here already is installed by "
            "nnUNetv2_install_pretrained_model_from_zip."
        )


def _write(response: HTTPResponse, path: Path, chunk_size: int, url: str) -> None:
    """Copy the answer of the server to a file, with a progress bar."""
    length = response.headers.get("Content-Length", "")
    expected = int(length) if length.isdecimal() else None
    received = 0
    with open(path, "wb") as file, tqdm(total=expected, unit="B", unit_scale=True, unit_divisor=1024, desc="download") as progress:
        while chunk := response.read(chunk_size):
            file.write(chunk)
            received += len(chunk)
            progress.update(len(chunk))
    if expected is not None and received != expected:
        raise DownloadError(f"The download of {url} broke off after {received} of {expected} bytes. Try it again.")
