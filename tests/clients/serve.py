"""Starts the program on free ports, sends it an update as Telegram does, and runs a client against it.

    python serve.py PROGRAM CLIENT…

The client gets the registry's URL and the Kafka address as its last arguments. The registry is the program's own, or the
Apicurio Registry that UNDERTONE_TEST_APICURIO names, with the schemas registered as a deployment does it. Ends with the
client's exit status, or with 1 if the program does not start, does not take the update, or does not stop in order.
"""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request

SECRET = "0123456789"
READY_LINES_MAX = 20
STOP_S_MAX = 60


def main(program: str, client: list[str]) -> int:
    settings = {
        "UNDERTONE__HTTP__LISTEN": "127.0.0.1:0",
        "UNDERTONE__BROKER__LISTEN": "127.0.0.1:0",
        "UNDERTONE__TELEGRAM__BOTS__HELPER__WEBHOOK_SECRET": SECRET,
    }
    registry = None
    if apicurio := os.environ.get("UNDERTONE_TEST_APICURIO"):
        registry = f"http://{apicurio}/apis/ccompat/v7"
        settings |= {"UNDERTONE__REGISTRY__KIND": "confluent", "UNDERTONE__REGISTRY__URL": registry}
        subprocess.run([program, "topics", "apply", "--schemas"], check=True, env={**os.environ, **settings})
    process = subprocess.Popen(
        [program, "up", "--ephemeral"], stdout=subprocess.PIPE, text=True, env={**os.environ, **settings}
    )
    try:
        said = ""
        for _ in range(READY_LINES_MAX):
            said += process.stdout.readline()
            if "roles" in said:
                break
        http = re.search(r"http +(http://\S+)", said)
        kafka = re.search(r"kafka +(\S+)", said)
        if not (http and kafka):
            print(f"the program did not say its addresses: {said!r}", file=sys.stderr)
            return 1
        message = {
            "message_id": 1,
            "from": {"id": 42, "is_bot": False, "first_name": "Ann"},
            "chat": {"id": 7, "type": "private", "first_name": "Ann"},
            "date": 1700000000,
            "text": "Thank you so much, that made my day!",
        }
        request = urllib.request.Request(
            f"{http[1]}/telegram/helper/webhook",
            data=json.dumps({"update_id": 1, "message": message}).encode(),
            headers={"X-Telegram-Bot-Api-Secret-Token": SECRET, "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200, answer.status
        code = subprocess.run([*client, registry or f"{http[1]}/registry", kafka[1]]).returncode
    finally:
        process.send_signal(signal.SIGTERM)
        stopped = process.wait(timeout=STOP_S_MAX)
    if stopped != 0:
        print(f"the program ended with {stopped}", file=sys.stderr)
    return code or int(stopped != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
