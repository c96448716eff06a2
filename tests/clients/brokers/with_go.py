"""Clients for Go: franz-go, sarama, and kafka-go, in a program on them (go/), with the versions of its go.mod and go.sum."""

import pathlib
import subprocess

from scene import BROKER, PATIENCE_S, run, same

HERE = pathlib.Path(__file__).parent
PROGRAM = HERE.parents[2] / ".cache/go-clients"


def holds(client: str, things: int):
    done = subprocess.run([PROGRAM, BROKER, client], capture_output=True, text=True, timeout=4 * PATIENCE_S)
    print("".join(f"    {line}\n" for line in done.stdout.splitlines()), end="")
    same((done.returncode, len(done.stdout.splitlines())), (0, things), f"the end, and what held; {done.stderr}")


def a_program_on_franz_go_holds():
    holds("franz_go", 6)


def a_program_on_sarama_holds():
    holds("sarama", 10)


def a_program_on_kafka_go_holds():
    holds("kafka_go", 3)


if __name__ == "__main__":
    subprocess.run(["go", "build", "-mod=readonly", "-o", PROGRAM, "."], cwd=HERE / "go", check=True)
    run(a_program_on_franz_go_holds, a_program_on_sarama_holds, a_program_on_kafka_go_holds)
