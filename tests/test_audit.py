"""No pinned package has a known vulnerability. Needs the network, for the database of vulnerabilities."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
# What pip-audit prints or raises if it can't reach its database.
UNREACHABLE = re.compile(
    r"Could not connect to|requests\.exceptions\.(?:ConnectionError|ConnectTimeout|ReadTimeout|ProxyError)"
)
NOT_IN_THE_DATABASE = "Dependency not found on PyPI"


def vulnerabilities(ended: subprocess.CompletedProcess) -> list[str]:
    """Return what pip-audit found. Skips the test if it could not reach its database; fails it for other errors."""
    try:
        packages = json.loads(ended.stdout)["dependencies"]
    except (ValueError, KeyError):
        if UNREACHABLE.search(ended.stderr):
            pytest.skip("pip-audit could not reach its database of vulnerabilities")
        pytest.fail(f"pip-audit failed (exit code {ended.returncode}): {ended.stderr.strip()[-500:]}")
    if packages and all(package.get("skip_reason", "").startswith(NOT_IN_THE_DATABASE) for package in packages):
        pytest.skip("what answered pip-audit is not the database of vulnerabilities: it has none of the packages")
    unread = [f"{package['name']}: {package['skip_reason']}" for package in packages if "vulns" not in package]
    found = [
        f"{package['name']} {package['version']}: {one['id']}, fixed in {one['fix_versions']}"
        for package in packages
        for one in package.get("vulns", ())
    ]
    return [*unread, *found]


@pytest.mark.slow
def test_no_pinned_package_has_a_known_vulnerability():
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "15"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert vulnerabilities(ended) == []


def audit_with(packages: list[dict] | None = None, errors: str = "") -> subprocess.CompletedProcess:
    output = "" if packages is None else json.dumps({"dependencies": packages})
    return subprocess.CompletedProcess([], 1, output, errors)


def test_findings_of_the_audit_and_packages_that_it_could_not_check_are_reported():
    finding = {"id": "PYSEC-1", "fix_versions": ["2.0"]}
    packages = [{"name": "a", "version": "1.0", "vulns": [finding]}, {"name": "b", "skip_reason": "unknown"}]
    assert vulnerabilities(audit_with(packages)) == ["b: unknown", "a 1.0: PYSEC-1, fixed in ['2.0']"]


@pytest.mark.parametrize("errors", ["No module named pip_audit", "Traceback ...\nKeyError: 'vulnerabilities'"])
def test_a_missing_or_broken_pip_audit_fails(errors):
    with pytest.raises(pytest.fail.Exception, match="pip-audit failed"):
        vulnerabilities(audit_with(errors=errors))


@pytest.mark.parametrize(
    "ended",
    [
        audit_with(errors="ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed"),
        audit_with(errors="requests.exceptions.ConnectionError: HTTPSConnectionPool(...): Max retries exceeded"),
        audit_with([{"name": "a", "skip_reason": f"{NOT_IN_THE_DATABASE} and could not be audited: a (1.0)"}]),
    ],
    ids=["timeout", "no network", "a mirror"],
)
def test_an_audit_without_its_database_is_skipped(ended):
    with pytest.raises(pytest.skip.Exception):
        vulnerabilities(ended)
