"""Commands that are told to end leave nothing half-written. Covers cli/signals.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_model import write_model

from pyllamacpu.cli.signals import Ended, ended_by_signals

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
SIGNALS = [signal.SIGTERM, signal.SIGHUP] if hasattr(signal, "SIGHUP") else []

# A conversion that never ends, from the moment on at which its file is there.
SLOW = """
import sys, time
from pyllamacpu.cli.main import main
from pyllamacpu.files import PartialFile
def write(self, data, offset=None):
    print("writing", flush=True)
    time.sleep(60)
PartialFile.write = write
main(sys.argv[1:])
"""


def _start(tmp_path: Path, *, ignored: bool = False) -> subprocess.Popen[str]:
    source = write_model(tmp_path / "m.gguf")
    command = [sys.executable, "-c", SLOW, "convert", str(source), "-o", str(tmp_path / "out.gguf")]
    command = ["nohup", *command] if ignored else command
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )


@pytest.mark.parametrize("number", SIGNALS)
def test_what_was_being_written_is_gone(number: signal.Signals, tmp_path: Path) -> None:
    with _start(tmp_path) as process:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        assert len([*tmp_path.glob(".*.part")]) == 1
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == -number and "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_who_ignores_a_signal_goes_on(tmp_path: Path) -> None:
    with _start(tmp_path, ignored=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize("number", SIGNALS)
def test_handlers_are_as_before_behind_the_block(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(Ended) as caught, ended_by_signals():
            os.kill(os.getpid(), number)
            time.sleep(5)
        assert caught.value.code == 128 + number
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
