"""Kills the schema registry under load, and starts the program while it is away.

    python registry_outage.py PROGRAM

The registry is the Apicurio Registry that UNDERTONE_TEST_APICURIO and UNDERTONE_TEST_APICURIO_NAME name, as
`deploy/servers/apicurio with` sets them. Ends with 1 if a turn is missing, if the program does not go on, or if it does not
say what it waits for. Standard library only.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

SERVER = pathlib.Path(__file__).parents[2] / "deploy/servers/apicurio"
SECRET = "0123456789"
TURNS_BEFORE, TURNS_AWAY, TURNS_AFTER = 20, 200, 20
LOOKS = 10
WAIT_S = 60
LOOK_S = 0.05


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def get(url: str) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def until(what: str, look):
    """Looks until there is something to see; ends the test where there is nothing in time."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        try:
            if (seen := look()) is not None:
                return seen
        except OSError:
            pass
        time.sleep(LOOK_S)
    sys.exit(f"{what}: not within {WAIT_S} s")


class Program:
    def __init__(self, program: str, registry: str):
        self.url = f"http://127.0.0.1:{free_port()}"
        settings = {
            "UNDERTONE__HTTP__LISTEN": self.url.removeprefix("http://"),
            "UNDERTONE__BROKER__LISTEN": "127.0.0.1:0",
            "UNDERTONE__TELEGRAM__BOTS__HELPER__WEBHOOK_SECRET": SECRET,
            "UNDERTONE__PROCESSORS__TIER": "fast",
            "UNDERTONE__REGISTRY__KIND": "confluent",
            "UNDERTONE__REGISTRY__URL": registry,
        }
        self.said = 0
        self.process = subprocess.Popen(
            [program, "up", "--ephemeral"], stdout=subprocess.DEVNULL, env={**os.environ, **settings}
        )

    def say(self, turns: int) -> None:
        for _ in range(turns):
            self.said += 1
            message = {
                "message_id": self.said,
                "from": {"id": 42, "is_bot": False, "first_name": "Ann"},
                "chat": {"id": 7, "type": "private", "first_name": "Ann"},
                "date": 1700000000,
                "text": f"Thank you so much, that made day {self.said}!",
            }
            request = urllib.request.Request(
                f"{self.url}/telegram/helper/webhook",
                data=json.dumps({"update_id": self.said, "message": message}).encode(),
                headers={"X-Telegram-Bot-Api-Secret-Token": SECRET, "Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=10) as answer:
                assert answer.status == 200, answer.status

    def kept(self) -> int | None:
        """The position of the last turn in history, once all that was said is there."""
        _, found = get(f"{self.url}/v1/conversations")
        last = max((one["last_position"] for one in found["conversations"]), default=0)
        return last if last >= self.said else None

    def readyz(self) -> tuple[int, dict]:
        return get(f"{self.url}/readyz")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        if (code := self.process.wait(timeout=WAIT_S)) != 0:
            sys.exit(f"the program ended with {code}")


def main(program: str) -> None:
    registry = f"http://{os.environ['UNDERTONE_TEST_APICURIO']}/apis/ccompat/v7"
    name = os.environ["UNDERTONE_TEST_APICURIO_NAME"]
    settings = {"UNDERTONE__REGISTRY__KIND": "confluent", "UNDERTONE__REGISTRY__URL": registry}
    subprocess.run([program, "topics", "apply", "--schemas"], check=True, env={**os.environ, **settings})

    running = Program(program, registry)
    try:
        until("ready", lambda: True if running.readyz()[0] == 200 else None)
        running.say(TURNS_BEFORE)
        subprocess.run([SERVER, "kill", "--name", name], check=True)
        for _ in range(LOOKS):
            running.say(TURNS_AWAY // LOOKS)
            assert running.readyz()[0] == 200, running.readyz()
        kept = until("turns that were said while the registry was dead", running.kept)
        print(f"registry killed under load: {kept} turns of {running.said} enriched and kept, ready at {LOOKS} looks")
    finally:
        running.stop()

    starting = Program(program, registry)
    try:
        def waits():
            code, answer = starting.readyz()
            reasons = [reason for reason in answer.get("reasons", []) if reason["part"] == "registry"]
            return (code, reasons[0]) if reasons else None

        code, reason = until("a reason in /readyz", waits)
        assert code == 503 and registry in reason["reason"] and reason["since"] > 0, (code, reason)
        print(f"cold start: /readyz answers {code} and says: {reason['reason']}")
        subprocess.run([SERVER, "start", "--name", name], check=True, stdout=subprocess.DEVNULL)
        begun = time.monotonic()
        until("ready after the registry is back", lambda: True if starting.readyz()[0] == 200 else None)
        print(f"ready {time.monotonic() - begun:.1f} s after the registry is back")
        starting.say(TURNS_AFTER)
        until("turns after the cold start", starting.kept)
    finally:
        starting.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
