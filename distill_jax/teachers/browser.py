"""The runtime of ONNX in a browser: files of onnxruntime-web, a package of npm.

https://github.com/microsoft/onnxruntime (MIT). Its WebAssembly runs on one thread in any page.
"""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile

from etils import epath

from distill_jax.runtime.files import absolute

PACKAGE = "onnxruntime-web@1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
FILES = (
    "ort.wasm.min.js",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
MAX_FILE = 2**26  # Bytes; the WebAssembly has 14 MB.
SECONDS = 600  # For 33 MB.


def copy_runtime(out: epath.Path, source: epath.PathLike | None) -> None:
    """Copies the files of the runtime into a new folder.

    Args:
      out: the new folder.
      source: folder with the files: `dist` of the package of npm, or `runtime` of another page;
        None downloads PACKAGE with npm.

    Raises:
      ValueError: without npm, for a download that fails or has other bytes, and for a `source`
        without the files.
    """
    out.mkdir(parents=True)
    if source is None:
        _download(out)
        return
    folder = absolute(source)
    for name in FILES:
        if not (folder / name).is_file():
            raise ValueError(
                f"--runtime={source} has no {name}; expected the folder dist of {PACKAGE}"
            )
        (folder / name).copy(out / name)


def _download(out: epath.Path) -> None:
    """Downloads PACKAGE with npm, and copies its files."""
    npm = shutil.which("npm")
    fix = f"give the folder of its files: --runtime=DIR, such as dist of {PACKAGE}"
    if npm is None:
        raise ValueError(
            f"the page needs {PACKAGE}, and there is no npm; install Node.js, or {fix}"
        )
    with tempfile.TemporaryDirectory() as folder:
        words = [npm, "pack", PACKAGE, "--silent", "--prefer-offline", "--ignore-scripts"]
        done = subprocess.run(
            [*words, f"--pack-destination={folder}"],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            timeout=SECONDS,
        )
        found = list(epath.Path(folder).glob("*.tgz"))
        if done.returncode or len(found) != 1:
            said = (done.stderr.strip() or done.stdout.strip())[-300:]
            raise ValueError(f"npm pack {PACKAGE} failed: {said or done.returncode}; {fix}")
        content = found[0].read_bytes()
        if base64.b64encode(hashlib.sha512(content).digest()).decode() != SHA512:
            raise ValueError(f"npm's {PACKAGE} is not the package that was tried; {fix}")
        with tarfile.open(found[0]) as archive:
            for name in FILES:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None  # The bytes are those that were tried.
                (out / name).write_bytes(member.read(MAX_FILE))
