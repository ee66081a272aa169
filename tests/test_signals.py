import os
import signal
import subprocess
import sys
import threading

import pytest

from dinov3_jax import signals

BOTH = """
import sys, time
from dinov3_jax import signals
signals.exit_at_once()
"""
SLEEP = BOTH + """
class Callback:  # an exception in here is printed and forgotten
  def __del__(self):
    print("ready", flush=True)
    time.sleep(60)

{work}
print("went on", flush=True)
"""
NOTED = BOTH + """
with signals.Noted("saving") as stop:
  print("ready", flush=True)
  while not stop.number:
    time.sleep(0.01)
  {then}
print("ready", flush=True)
time.sleep(60)
"""


def start(code, **options):
  process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, **options)
  assert process.stdout.readline() == "ready\n"
  return process


@pytest.mark.parametrize("number, code", [
  (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_is_one_line_and_its_exit_code(number, code):
  process = start(SLEEP.format(work="callback = Callback()\ndel callback"))
  process.send_signal(number)
  out, err = process.communicate(timeout=20)
  assert (process.returncode, out, err) == (code, "", "\ninterrupted\n")


def test_what_is_ignored_stays_so():
  code = SLEEP.format(work='print("ready", flush=True)\nsys.stdin.readline()')
  process = start(code, stdin=subprocess.PIPE,
                  preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
  process.send_signal(signal.SIGHUP)
  out, err = process.communicate("\n", timeout=20)
  assert (process.returncode, out, err) == (0, "went on\n", "")


def test_a_noted_signal_lets_the_work_end():
  process = start(NOTED.format(then="pass"))
  process.send_signal(signal.SIGTERM)
  assert process.stdout.readline() == "ready\n"
  process.send_signal(signal.SIGTERM)  # after the block all is as before
  _, err = process.communicate(timeout=20)
  assert (process.returncode, err) == (143, "\nsaving\n\ninterrupted\n")


def test_the_second_signal_kills():
  process = start(NOTED.format(then='print("ready", flush=True); time.sleep(60)'))
  process.send_signal(signal.SIGTERM)
  assert process.stdout.readline() == "ready\n"
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=20)
  assert (process.returncode, err) == (-signal.SIGINT, "\nsaving\n")


def test_the_first_of_two_counts_and_handlers_come_back():
  before = [signal.getsignal(number) for number in signals.NUMBERS]
  with signals.Noted() as stop:
    assert stop.number == 0
    stop._handle(signal.SIGTERM, None)
    stop._handle(signal.SIGINT, None)
    assert stop.number == signal.SIGTERM
  assert [signal.getsignal(number) for number in signals.NUMBERS] == before


def test_other_threads_leave_the_handlers_alone():
  before, after = signal.getsignal(signal.SIGINT), []

  def work():
    with signals.Noted() as stop:
      after.extend([stop.number, signal.getsignal(signal.SIGINT)])

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert after == [0, before]


def test_importing_is_light():
  code = "import sys; from dinov3_jax import signals; print(*sys.modules)"
  modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                           env=dict(os.environ)).stdout.split()
  assert not {"numpy", "jax", "absl"} & set(modules)
