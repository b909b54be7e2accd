"""Standard streams that are closed, or that cannot encode what is printed, and a Python without docstrings."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sweeper.cli.console import print_json

STREAMS = {"<&-": 0, ">&-": 1, "2>&-": 2}
COMMANDS = {"--version": (0, b"", 1), "launch --time-limit x": (2, b"Error: --time-limit: got 'x'", 2)}
"""Commands that import little: exit code, the beginning of standard error, and the stream that is written to."""


def python(arguments: str, redirections: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A Python as a shell starts it."""
    line = f"{shlex.quote(sys.executable)} {arguments} {redirections}"
    return subprocess.run(line, shell=True, env=os.environ | environment, capture_output=True, timeout=120, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(COMMANDS))
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_works_without_what_is_closed(closed: str, command: str) -> None:
    code, error, written = COMMANDS[command]
    result = python(f"-m sweeper.cli {command}", closed)
    is_closed = {STREAMS[each] for each in closed.split()}
    assert result.returncode == code
    assert bool(result.stdout) == (written == 1 and 1 not in is_closed)
    assert result.stderr.startswith(error) if written == 2 and 2 not in is_closed else not result.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_stream_here_or_in_a_child(closed: str, tmp_path: Path) -> None:
    look = "import os; os.write(9, ' '.join(os.readlink(f'/proc/self/fd/{n}') for n in (0, 1, 2)).encode())"
    script, found = tmp_path / "script.py", tmp_path / "found"
    script.write_text(
        "import subprocess, sys, sweeper.cli\nprint('x')\nprint('x', file=sys.stderr)\n"
        f"subprocess.run([sys.executable, '-c', {look!r}], pass_fds=[9], check=True)\n"
    )
    result = python(str(script), f"{closed} 9> {found}")
    assert result.returncode == 0, result.stderr
    targets = found.read_text().split()
    assert [targets[STREAMS[each]] for each in closed.split()] == [os.devnull] * len(closed.split())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_characters_that_cannot_be_encoded_are_replaced(encoding: str) -> None:
    code = (
        "import sys; from sweeper.cli.console import tell, warn; tell('dp · ε'); warn('dp · ε'); sys.stdout.write('ε')"
    )
    result = python(f"-c {shlex.quote(code)}", PYTHONIOENCODING=encoding)
    assert result.returncode == 0, result.stderr
    expected = "dp · ε".encode(encoding, "replace").decode(encoding)
    assert result.stdout.decode(encoding) == f"{expected}\n{expected[-1]}"
    assert result.stderr.decode(encoding) == f"Warning: {expected}\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_loses_no_character(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    monkeypatch.setattr(sys, "stdout", stream)
    print_json({"title": "dp · ε"})
    stream.flush()
    assert json.loads(stream.buffer.getvalue().decode(encoding)) == {"title": "dp · ε"}


@pytest.mark.slow
def test_a_python_without_docstrings_is_refused_in_one_line() -> None:
    result = python("-m sweeper.cli launch demo", PYTHONOPTIMIZE="2")
    assert result.returncode == 2
    assert result.stderr.startswith(b"Error: Python runs with -OO (PYTHONOPTIMIZE=2)")
    assert result.stderr.count(b"\n") == 1
    assert python("-m sweeper.cli --version", PYTHONOPTIMIZE="1").returncode == 0
