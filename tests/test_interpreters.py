"""Forked processes behave as those that an interpreter begins by itself."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

ENDS = """
import atexit, os, sys, threading, time
atexit.register(print, "at exit")
threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
print(sys.argv, os.getcwd(), os.environ.get("GIVEN"), __name__)
print("wrong", file=sys.stderr)
sys.exit(3)
"""


@pytest.mark.parametrize("way", ["code", "script"])
def test_a_fork_says_and_ends_as_an_interpreter(python, tmp_path, way):
    (tmp_path / "script.py").write_text(ENDS)
    words = ["-c", ENDS, "a b"] if way == "code" else ["script.py", "a b"]
    options = {"cwd": tmp_path, "env": {"GIVEN": "yes"}}
    real = subprocess.run([sys.executable, *words], capture_output=True, text=True, **options)
    forked = python.run(words, **options)
    assert forked.returncode == real.returncode == 3
    assert (forked.stdout, forked.stderr) == (real.stdout, real.stderr)
    assert real.stdout.endswith("thread\nat exit\n")


def test_a_fork_is_written_to_and_killed(python):
    code = "import time; print(input()); print(open('/proc/self/stat').read(), flush=True); "
    child = python.start(["-c", code + "time.sleep(60)"], stdin=subprocess.PIPE)
    child.stdin.write("hello\n")
    child.stdin.flush()
    assert child.stdout.readline() == "hello\n"
    assert child.stdout.readline().startswith(f"{child.pid} ")
    assert child.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.1)
    child.kill()
    assert child.wait() == -signal.SIGKILL


def test_what_it_leaves_behind_is_not_seen_by_the_next(python):
    python.run(["-c", "import os, sys; sys.modules['mark'] = os; os.environ['MARK'] = '1'"])
    done = python.run(["-c", "import os, sys; print('mark' in sys.modules, 'MARK' in os.environ)"])
    assert done.stdout == "False False\n"
