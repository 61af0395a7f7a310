"""The process of `graders.MathVerifier`. Reads JSON lines [boxed, gold] and writes 1 or 0 for each, one per line."""

import json
import sys


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # keeps prints of the library out of the answers
    from math_verify import parse, verify

    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        boxed, gold = json.loads(line)
        try:
            wanted = parse(f"\\boxed{{{gold}}}", parsing_timeout=None)
            given = parse(f"\\boxed{{{boxed}}}", parsing_timeout=None)
            same = bool(verify(wanted, given, timeout_seconds=None))
        except Exception as error:  # an answer that the library cannot handle counts as wrong
            print(error, file=sys.stderr)
            same = False
        print(int(same), file=answers, flush=True)


if __name__ == "__main__":
    main()
