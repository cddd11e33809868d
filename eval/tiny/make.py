#!/usr/bin/env python3
"""Writes sums.jsonl, recall.jsonl and all.jsonl: the questions of the trained fixture as lm_eval's
tasks beside this file want them. Needs Python alone.
usage: python3 make.py"""
import json
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIXTURE = HERE.parents[1] / "crates/gdn-model/tests/fixtures/qwen3_5_trained"
STOP = "\n\n"


def choices(question, answer, target):
    """Answers of the same form, in ascending order: sums nearby, or each number that is given."""
    numbers = {int(number) for number in re.findall(r"\w is (\d+)[,.]", question)}
    numbers = numbers or {number for number in range(target - 2, target + 3) if number >= 0}
    form = answer.removesuffix(f"{target}\n#### {target}")
    return {number: f"{form}{number}\n#### {number}" for number in sorted(numbers)}


def main():
    prefix = (FIXTURE / "eval_prefix.txt").read_text()
    docs = {"add": [], "recall": []}
    for line in (FIXTURE / "eval.jsonl").read_text().splitlines():
        row = json.loads(line)
        answers = choices(row["question"], row["answer"], row["target"])
        docs[row["task"]].append({
            "prompt": f"{prefix}Question: {row['question']}\nAnswer:",
            "target": str(row["target"]),
            "choices": list(answers.values()),
            "gold": list(answers).index(row["target"]),
            # What Hugging Face transformers answers from these weights.
            "text": row["hf_f32_output"].split(STOP)[0],
        })
    for name, rows in (("sums", docs["add"]), ("recall", docs["recall"]), ("all", docs["add"] + docs["recall"])):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (HERE / f"{name}.jsonl").write_text(lines)


if __name__ == "__main__":
    main()
