"""No pinned package has a known vulnerability. Needs the network, for the database of vulnerabilities."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"


def judge(exit_code: int, output: str, said: str) -> list[str]:
    """Return the known vulnerabilities that pip-audit found; skips the test where it could not ask the database."""
    try:
        found = json.loads(output)["dependencies"]
    except (ValueError, KeyError):
        pytest.skip(f"pip-audit could not ask its database (exit code {exit_code}): {said.strip()[-300:]}")
    if not any("vulns" in package for package in found):
        pytest.skip("pip-audit reached no database of vulnerabilities: every package was skipped")
    return [
        f"{package['name']} {package['version']}: {one['id']}, fixed in {one['fix_versions']}"
        for package in found
        for one in package.get("vulns", ())
    ]


@pytest.mark.slow
def test_no_pinned_package_has_a_known_vulnerability():
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "15"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert judge(ended.returncode, ended.stdout, ended.stderr) == []


def test_a_finding_of_the_audit_is_not_skipped():
    finding = {"id": "PYSEC-1", "fix_versions": ["2.0"]}
    packages = [{"name": "a", "version": "1.0", "vulns": [finding]}, {"name": "b", "skip_reason": "unknown"}]
    assert judge(1, json.dumps({"dependencies": packages}), "") == ["a 1.0: PYSEC-1, fixed in ['2.0']"]
    for output in ("", json.dumps({"dependencies": packages[1:]})):
        with pytest.raises(pytest.skip.Exception):
            judge(1, output, "no network")
