"""Runs every client's test against one broker: all.py PROGRAM [CLIENT…].

UNDERTONE_TEST_KAFKA names a running Apache Kafka as HOST:PORT; without it the program's embedded broker is started on a
free port, and stopped again. CLIENT is the name of a test without `with_`, such as kcat; all of them by default, but
those in languages that are not here, which it names. Ends with 1 if a test does not hold, or if the program does not
start, or does not stop in order.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

CLIENTS = ["kcat", "confluent_kafka", "kafka_python", "aiokafka", "java", "go", "kafkajs"]
# What a client needs that not every machine has: the least version, and the command that says which is there.
NEEDS = {"go": ((1, 21), ["go", "version"]), "kafkajs": ((18, 0), ["node", "--version"])}
HERE = pathlib.Path(__file__).parent
READY_LINES_MAX = 20
STOP_S_MAX = 60
# Longest time for one client's tests, many of which start a process of their own for each step.
TESTS_S_MAX = 900


def hold(clients: list[str], broker: str) -> bool:
    held = True
    for client in clients:
        print(f"{client} on {broker}", flush=True)
        begun = time.monotonic()
        test = subprocess.run([sys.executable, HERE / f"with_{client}.py"], timeout=TESTS_S_MAX,
                              env={**os.environ, "UNDERTONE_TEST_KAFKA": broker})
        print(f"{client} {'holds' if test.returncode == 0 else 'FAILED'} after {time.monotonic() - begun:.0f} s", flush=True)
        held &= test.returncode == 0
    return held


def embedded(program: str, clients: list[str]) -> bool:
    settings = {"UNDERTONE__BROKER__LISTEN": "127.0.0.1:0", "UNDERTONE__HTTP__LISTEN": "127.0.0.1:0"}
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen([program, "run", "broker", "--data-dir", folder], stdout=subprocess.PIPE, text=True,
                                   env={**os.environ, **settings})
        try:
            said = ""
            for _ in range(READY_LINES_MAX):
                said += process.stdout.readline()
                if "roles" in said:
                    break
            address = re.search(r"kafka +(\S+)", said)
            if address is None:
                print(f"the program did not say its address: {said!r}", file=sys.stderr)
                return False
            held = hold(clients, address[1])
        finally:
            process.send_signal(signal.SIGTERM)
            stopped = process.wait(timeout=STOP_S_MAX)
        if stopped != 0:
            print(f"the program ended with {stopped}", file=sys.stderr)
        return held and stopped == 0


def lacks(client: str) -> str:
    """What this machine lacks to run a client's test, or nothing. From 1.21 on, Go gets the version that go.mod asks for."""
    if client not in NEEDS:
        return ""
    least, command = NEEDS[client]
    wanted = f"{command[0]} {least[0]}.{least[1]} or later"
    if shutil.which(command[0]) is None or (client == "kafkajs" and shutil.which("npm") is None):
        return wanted
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+)\.(\d+)", said)
    return "" if found and (int(found[1]), int(found[2])) >= least else wanted


def main(program: str, clients: list[str]) -> int:
    missing = {client: lack for client in clients or CLIENTS if (lack := lacks(client))}
    for client, lack in missing.items():
        print(f"{client} is left out: it needs {lack}", file=sys.stderr)
    if clients and missing:
        return 1
    clients = clients or [client for client in CLIENTS if client not in missing]
    kafka = os.environ.get("UNDERTONE_TEST_KAFKA")
    return int(not (hold(clients, kafka) if kafka else embedded(program, clients)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
