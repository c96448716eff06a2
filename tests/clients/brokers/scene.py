"""What every client's test needs: the broker's address, names that nobody else has, waiting with a bound.

The broker is the one that UNDERTONE_TEST_KAFKA names as HOST:PORT; `run` sets it to a broker of the built program,
or to an Apache Kafka, and the tests ask the same of both.
"""

import os
import time
import uuid

BROKER = os.environ["UNDERTONE_TEST_KAFKA"]
# Longest wait for anything that must happen, in seconds.
PATIENCE_S = 60
# Time between two questions.
ASK_AGAIN_S = 0.01


def unique(prefix: str) -> str:
    """A name that no other test has, also on a broker that is used again."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def wait_until(what: str, so, patience_s: float = PATIENCE_S):
    """Asks until the answer is truthy, and returns it."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        if answer := so():
            return answer
        time.sleep(ASK_AGAIN_S)
    raise AssertionError(f"waited {patience_s} s for {what}")


def same(found, expected, what: str):
    """Asserts that two things are equal, and says both if not."""
    assert found == expected, f"{what}: found {found!r} where {expected!r} was expected"


def run(*tests):
    """Runs tests one after another and names each that held."""
    for test in tests:
        begun = time.monotonic()
        test()
        print(f"  {test.__name__.replace('_', ' ')} ({time.monotonic() - begun:.1f} s)", flush=True)
