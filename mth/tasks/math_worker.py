"""The process of `graders.Pool`. Reads JSON lines [boxed, gold, CPU seconds] and writes 1 or 0 for each, one per line.

An answer that takes more CPU time kills the process with SIGPROF, also inside C code that lets no Python handler run. The machine may stop
or be busy for as long as it likes. The process ends when its input does, which is when its parent ends.
"""

import json
import resource
import signal
import sys

MEMORY = 4 << 30  # bytes of address space; an answer such as 10^{10^{10}} must not take the machine's
WARM_UP = ((r"\frac{1}{2}", "0.5"), (r"x^2+2x+1", "(x+1)^2"), ("1,2", "2,1"), ("x=5", "5"))


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # keeps prints of the library out of the answers
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    from mth.tasks.equivalence import same

    for boxed, gold in WARM_UP:
        same(boxed, gold)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        boxed, gold, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            equal = same(boxed, gold)
        except Exception as error:  # an answer that the library cannot handle counts as wrong
            print(error, file=sys.stderr)
            equal = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(int(equal), file=answers, flush=True)


if __name__ == "__main__":
    main()
