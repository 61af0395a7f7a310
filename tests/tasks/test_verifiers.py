"""Environments of the verifiers library, driven without its servers: prompts, reacting users, rewards, and what is refused."""

import sys

import pytest

from mth.config.schema import TaskConfig
from mth.foundations.errors import UserError
from mth.rollout.player import ChatRenderer, Player
from mth.tasks import build_task
from mth.tasks.base import prompt_of
from tests.rollout.test_player import Parrot

SINGLE = """import verifiers.v1 as vf

__all__ = ["Toys"]


class Row(vf.TaskData):
    answer: str


class Settings(vf.TasksetConfig):
    most: int = 40


class Toy(vf.Task[Row]):
    @vf.reward(weight=1.0)
    async def right(self, trace: vf.Trace) -> float:
        return float(trace.last_reply == self.data.answer)

    @vf.metric
    async def turns(self, trace: vf.Trace) -> float:
        return float(len(trace.assistant_messages))


class Toys(vf.Taskset[Toy, Settings]):
    def load(self):
        for n in range(10, 10 + self.config.most):
            yield Toy(Row(prompt=f"Guess number {n - 9}.", system_prompt="Be brief.", answer=str(n)), self.config.task)
"""
TALKS = (
    SINGLE.replace('["Toys"]', '["Toys", "Talk"]')
    + """

class Talk(vf.SingleAgentEnv):
    async def run(self, task, agents):
        async with agents.agent.interaction(task) as chat:
            segment = await chat.turn()
            while segment.last_reply != task.data.answer:
                segment = await chat.turn("Higher." if segment.last_reply < task.data.answer else "Lower.")
                if segment.terminated:
                    break
"""
)


@pytest.fixture
def environment(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    names = []

    def build(text, rows=24, **keys):
        name = f"toy-{len(names)}"
        names.append(name.replace("-", "_"))
        (tmp_path / f"{names[-1]}.py").write_text(text)
        return build_task(TaskConfig(f"verifiers_{names[-1]}", environment=f"someone/{name}", train_rows=rows, **keys))

    yield build
    for name in names:
        sys.modules.pop(name, None)


def test_a_single_turn_environment_is_a_task(environment):
    task = environment(SINGLE)
    assert (task.name, len(task.train), len(task.eval), task.respond) == ("verifiers_toy_0", 24, 6, None)
    assert not {prompt_of(e) for e in task.train} & {prompt_of(e) for e in task.eval}
    episode = task.train[0]
    assert (episode.system, episode.turns) == ("Be brief.", (f"Guess number {int(episode.truth[0]) - 9}.",))
    assert task.score(episode, [f" {episode.truth[0]}"]) == {"turns": 1.0, "reward": 1.0}
    assert task.score(episode, ["no"]) == {"turns": 1.0, "reward": 0.0}
    assert len({prompt_of(e) for part in (environment(SINGLE, options={"most": 8}),) for e in (*part.train, *part.eval)}) == 8


def test_an_environment_reacts_to_replies(environment, tokenizer):
    task = environment(TALKS, max_turns=3)
    episode = next(e for e in (*task.train, *task.eval) if e.truth == ("20",))
    engine = Parrot(tokenizer, [["19", "20", "7"], ["21", "19"], ["20", "18"]])
    rollouts = Player(engine, ChatRenderer(tokenizer)).rollout_episodes(
        task, [episode], group_size=3, max_tokens=8, temperature=1.0, seed=()
    )
    assert [(r.replies, r.reward, r.scores["turns"]) for r in rollouts] == [
        (["19", "21", "20"], 1.0, 3.0),
        (["20"], 1.0, 1.0),
        (["7", "19", "18"], 0.0, 3.0),
    ]
    said = [part.partition("<|im_end|>")[0] for part in tokenizer.decode(rollouts[0].ids).split("<|im_start|>user\n")[1:]]
    assert said == ["Guess number 11.", "Higher.", "Lower."]


@pytest.mark.parametrize(
    ("text", "keys", "message"),
    [
        (SINGLE, {"options": {"mots": 3}}, r"cannot be made with these task\.options \(ValidationError"),
        ("import nothing_here\n", {}, "there is no such environment here"),
        (SINGLE.replace("class Toy(vf.Task[Row]):", "class Toy(vf.Task[Row]):\n    NEEDS_CONTAINER = True\n"), {}, "needs a container"),
        (SINGLE.replace("trace: vf.Trace) -> float:\n        return float(trace.last", "trace: vf.Trace, runtime) -> float:\n        return float(trace.last"), {}, "needs a container or another runtime"),
        (SINGLE.replace("    @vf.reward(weight=1.0)\n", ""), {}, "gives no reward"),
        (SINGLE.replace("weight=1.0", "weight=3.0"), {}, r"the reward of 0 is 3; scale rewards"),
        (SINGLE.replace("return float(trace.last_reply == self.data.answer)", "raise OSError('no network')"), {}, r"cannot score 0 \(.*no network"),
        (SINGLE.replace("for n in range(10, 10 + self.config.most):", "for n in open('/nowhere'):"), {}, "its data cannot be loaded .*does it need a network"),
        (SINGLE.replace("class Toys(vf", "class Tool(vf.Toolset):\n    pass\n\n\nclass Toys(vf") + "\n    @classmethod\n    def toolsets(cls, config):\n        return [Tool]\n", {}, "needs tools, which mth does not run"),
        (TALKS.replace("vf.SingleAgentEnv", "vf.Env[vf.EnvConfig]"), {}, "has several agents"),
    ],
)  # fmt: skip
def test_what_needs_more_than_a_conversation_is_refused_in_one_line(environment, text, keys, message):
    with pytest.raises(UserError, match=message) as caught:
        environment(text, **keys)
    assert "\n" not in str(caught.value)
    assert "task.environment=someone/toy-0" in str(caught.value)
