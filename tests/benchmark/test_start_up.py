import subprocess
import sys
import time

from gpt_jax.benchmark import start_up
from gpt_jax.benchmark.start_up import StartUp, process_age


def test_phases_add_up_to_the_age_of_the_process():
    watch = StartUp()
    watch.mark('imports')
    time.sleep(0.02)
    watch.mark('wait')
    assert list(watch.seconds) == ['imports', 'wait']
    assert 0.02 <= watch.seconds['wait'] < 1
    if process_age() is not None:
        assert watch.since == 'start of the process'
        assert abs(watch.total - process_age()) < 0.2


def test_the_age_begins_before_python_does():
    code = (
        'import time; time.sleep(0.3); from gpt_jax.benchmark.start_up import process_age; '
        'print(process_age() or 0.3)'
    )
    began = time.monotonic()
    age = float(subprocess.run([sys.executable, '-c', code], capture_output=True).stdout)
    assert 0.29 <= age <= time.monotonic() - began + 0.02


def test_elsewhere_it_counts_from_the_import(monkeypatch):
    monkeypatch.setattr(start_up, 'process_age', lambda: None)
    watch = StartUp()
    watch.mark('imports')
    assert watch.since == 'import of the benchmark'
    assert watch.total > 0
