"""Signals: the first asks the work to stop, the second to hurry, and nothing is left in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from expertmesh.cli import processes
from expertmesh.cli.supervisor import Stop, StopRequestedError, supervise

PROGRAM = """
import subprocess, sys, time
from expertmesh.cli.supervisor import StopRequestedError, supervise

def polite(stop):
    print("ready", flush=True)
    try:
        stop.pause(60)
    except StopRequestedError:
        pass
    print("asked", flush=True)
    return 7 if stop.at_once.wait(60) else 8

def stubborn(stop):
    # The shell ends at once: the first is nobody's child any more.
    orphan = int(subprocess.check_output("sleep 600 >&2 & echo $!", shell=True))
    print("ready", orphan, subprocess.Popen(["sleep", "600"]).pid, flush=True)
    time.sleep(600)

sys.exit(supervise({"polite": polite, "stubborn": stubborn}[sys.argv[1]], grace_s=float(sys.argv[2])))
"""


@pytest.fixture
def start():
    started = []

    def start(work: str, grace_s: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROGRAM, work, str(grace_s)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_and_the_second_hurries(start, signum):
    process = start("polite", 30)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signum)
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signum)
    assert process.wait(20) == 7


def test_work_that_does_not_end_is_ended_with_its_processes(start):
    process = start("stubborn", 0.5)
    pids = [int(word) for word in process.stdout.readline().split()[1:]]
    known = [p for p in processes.descendants(process.pid) if p.pid in pids]
    assert len(known) == len(pids) == 2
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 1
    assert not any(p.alive for p in known)


def test_the_result_and_the_error_of_the_work_come_back():
    assert supervise(lambda stop: 5, grace_s=1) == 5

    def fail(stop: Stop) -> int:
        raise LookupError("why")

    with pytest.raises(LookupError, match="why"):
        supervise(fail, grace_s=1)


def test_signals_are_taken_back_from_whoever_took_them():
    got = []

    def work(stop: Stop) -> int:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signal_taken.wait(10)
        stop.signals_taken()
        while signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StopRequestedError):
            stop.pause(10)
        got.append(True)
        return 0

    signal_taken = threading.Event()
    before = signal.getsignal(signal.SIGTERM)

    def steal(signum: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal_taken.set()

    usr1 = signal.signal(signal.SIGUSR1, steal)
    try:
        assert supervise(work, grace_s=30) == 0
    finally:
        signal.signal(signal.SIGUSR1, usr1)
    assert got == [True]
    assert signal.getsignal(signal.SIGTERM) is before
