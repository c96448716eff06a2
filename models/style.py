"""Writes the file that `undertone eval style` reads: prompts with a reply of each persona, as JSON lines.

    python3 models/style.py --data DIR > style.jsonl

DIR holds personality_chat_ms/ as published. Only scenarios that the style was not fitted on are written (`--all` for every
one); a scenario with more replies of a persona gives a line for each of them in turn.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "train"))

from personality import PERSONAS, is_held, replies_of  # noqa: E402


def lines_of(folder, everything=False):
    """[{prompt, scenario, replies}]; prompts of the published pairs of the friendly persona, or the scenario's name."""
    replies = {}
    for scenario, persona, reply in replies_of(folder):
        replies.setdefault(scenario, {}).setdefault(PERSONAS[persona], []).append(reply)
    prompts = {}
    for line in (folder / "CSharp/Datasets/Queries_Responses_Friendly_QnAMaker.tsv").read_text(encoding="utf-8-sig").splitlines()[1:]:
        prompt, _, metadata = line.split("\t")[:3]
        prompts.setdefault(metadata.removeprefix("Scenario:"), []).append(prompt.strip())
    for scenario, by in sorted(replies.items()):
        if len(by) == len(PERSONAS) and (everything or is_held(scenario)):
            asked = prompts.get(scenario, [scenario])
            for turn in range(max(len(asked), *(len(said) for said in by.values()))):
                chosen = {persona: said[turn % len(said)] for persona, said in by.items()}
                yield {"prompt": asked[turn % len(asked)], "scenario": scenario, "replies": chosen}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder that holds personality_chat_ms/")
    parser.add_argument("--all", action="store_true", help="scenarios that the style was fitted on, too")
    arguments = parser.parse_args()
    for row in lines_of(Path(arguments.data) / "personality_chat_ms", arguments.all):
        print(json.dumps(row, ensure_ascii=False))
