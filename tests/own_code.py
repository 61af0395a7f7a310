"""Files as a user writes them: a task that reacts to replies, a mask family, a rule of the loss, a grader."""

TASK = '''"""Guess a number."""

from mth.tasks.base import Episode, Task, hold_out


def score(episode, replies):
    return 1.0 if replies and replies[-1].strip() == episode.truth[0] else 0.1 * sum(reply.strip().isdigit() for reply in replies) / 3


def respond(episode, replies):
    guess, number = replies[-1].strip(), int(episode.truth[0])
    if not guess.isdigit():
        return "Say a number."
    return None if int(guess) == number else "Higher." if int(guess) < number else "Lower."


def build(config):
    rows = [Episode(f"n{n}", (f"Guess number {n - 9}.",), (str(n),)) for n in range(10, 10 + config.options.get("most", 40))]
    return Task("any", *hold_out(rows, config), score, respond=respond, most_turns=3)
'''
MASK = """import math

import numpy as np

from mth.tickets.masks.base import Family


def counts(shapes, percent, mask):
    return {name: len(range(0, math.prod(shape), mask.options["every"])) for name, shape in shapes.items()}


def draw(shapes, counts, mask_seed, mask, weights):
    return lambda name: np.arange(counts[name]) * mask.options["every"]


STRIDE = Family(draw, counts, options={"every": 100})
"""
RULE = """def rule(ratio, advantages, config):
    return -ratio * advantages, ratio < 0
"""
GRADER = """def grade(reply, truth):
    return 1 if truth in reply else 0
"""
