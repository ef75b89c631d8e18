"""Runs the tests of one device (`tests/project/test_gpu.py`) and counts them.

python examples/benchmarks/gpu_tests.py -m gpu --output tests.json
"""

from __future__ import annotations

import argparse
import xml.etree.ElementTree as ET
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from turns import write

ROOT = Path(__file__).resolve().parents[2]
FILE = "tests/project/test_gpu.py"


def main() -> None:
    """Counts what passed, failed and was skipped; ends as pytest ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", dest="marked", default="", help="as pytest's -m")
    parser.add_argument("-k", dest="named", default="", help="as pytest's -k")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        words = ["-q", "-p", "no:cacheprovider", "-m", args.marked, "-k", args.named, f"--junitxml={report}"]
        status = pytest.main([*words, str(ROOT / FILE)])
        suite = ET.parse(report).getroot()[0]
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    left = counts["failures"] + counts["errors"] + counts["skipped"]
    write(counts | {"passed": counts["tests"] - left}, args)
    raise SystemExit(int(status))


if __name__ == "__main__":
    main()
