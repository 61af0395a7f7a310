"""A task of the user's own file: what it may return, what is refused before anything is trained, and conversations that react."""

import numpy as np
import pytest

from mth.config.schema import TaskConfig
from mth.foundations.errors import UserError
from mth.rollout.player import ChatRenderer, Player
from mth.tasks import build_task, check_data, load_tasks
from mth.tasks.base import prompt_of
from tests.conftest import make_config
from tests.own_code import GRADER, TASK
from tests.rollout.test_player import Parrot


def config_of(tmp_path, text, **task):
    (tmp_path / "guess.py").write_text(text)
    return make_config(task={"name": "own", "source": f"{tmp_path / 'guess.py'}:build"} | task)


def test_a_file_is_a_task(tmp_path):
    config = config_of(tmp_path, TASK, options={"most": 50})
    assert (config.task.name, config.eval.tasks) == ("guess", ["guess"])
    train, evaluated = load_tasks(config)
    assert train is evaluated["guess"] and train.name == "guess"
    assert (len(train.train), len(train.eval)) == (40, 10)
    assert not {prompt_of(e) + e.truth for e in train.train} & {prompt_of(e) + e.truth for e in train.eval}
    assert train.score(train.train[0], [train.train[0].truth[0]]) == {"reward": 1.0}


def test_a_conversation_reacts_to_the_replies_and_ends(tmp_path, tokenizer):
    task = build_task(config_of(tmp_path, TASK).task)
    episode = next(e for e in (*task.train, *task.eval) if e.truth == ("20",))
    engine = Parrot(tokenizer, [["19", "20", "no"], ["21", "20"], ["20"]])
    rollouts = Player(engine, ChatRenderer(tokenizer)).rollout_episodes(
        task, [episode], group_size=3, max_tokens=8, temperature=1.0, seed=("seed",)
    )
    assert [rollout.replies for rollout in rollouts] == [["19", "21", "20"], ["20"], ["no", "20"]]
    assert [rollout.reward for rollout in rollouts] == [1.0, 1.0, 1.0]
    said = [tokenizer.decode(rollout.ids).split("<|im_start|>user\n")[1:] for rollout in rollouts]
    assert [[turn.partition("<|im_end|>")[0] for turn in turns] for turns in said] == [
        ["Guess number 11.", "Higher.", "Lower."],
        ["Guess number 11."],
        ["Guess number 11.", "Say a number."],
    ]
    seeds = [request.seed for requests in engine.seen for request in requests]
    assert len(set(seeds)) == len(seeds) == 6


def test_a_conversation_ends_at_its_most_turns(tmp_path, tokenizer):
    task = build_task(config_of(tmp_path, TASK.replace("most_turns=3", "most_turns=2")).task)
    player = Player(Parrot(tokenizer, [["1"], ["2"], ["3"]]), ChatRenderer(tokenizer))
    (rollout,) = player.rollout_episodes(task, task.eval[:1], group_size=1, max_tokens=8, temperature=1.0, seed=())
    assert rollout.replies == ["1", "2"]


PLAIN = """from mth.tasks.base import Episode, Task

def score(episode, replies):
    return SCORE

def build(config):
    rows = [{"question": "q0"}, {"question": "q1"}, {"text": "q2"}]
    episodes = EPISODES
    return Task("t", episodes, episodes, scoreMORE)
"""


def plain(score="1.0", episodes='[Episode(str(i), ("q",), ("a",)) for i in range(9)]', more=""):
    return PLAIN.replace("SCORE", score).replace("EPISODES", episodes).replace("MORE", more)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def build(config)\n    pass", r"cannot be imported: at line 1 \(SyntaxError"),
        ("import nothing_of_this_name\n", r"cannot be imported: at line 1 \(ModuleNotFoundError: No module named 'nothing_of_this_name'\)"),
        ("raise SystemExit(3)\n", r"cannot be imported: at line 1 \(SystemExit: 3\)"),
        ("def other(config):\n    pass", r"it defines no build; it defines other"),
        ("build = 3", r"is a value of type int, not a function: def build\(config\)"),
        ("def build():\n    pass", r"does not take config .*: def build\(config\)"),
        ("def build(config, more):\n    pass", r"does not take config .*missing a required argument: 'more'"),
        ("def build(config):\n    return [1]", r"gives a value of type list instead of a Task: return Task\("),
        (
            plain(episodes='[Episode(str(i), (row["question"],), ("a",)) for i, row in enumerate(rows)]'),
            r"at line 8 \(KeyError: 'question'\)",
        ),
        (plain(episodes="[3]"), r"train\[0\] is a value of type int, not an Episode"),
        (plain(episodes='[Episode("a", "hello", ("b",))]'), r"train\[0\]: turns must be a tuple of texts, .*not a value of type str"),
        (plain(episodes='[Episode("a", ("hello",), (3,))]'), r"train\[0\]: truth must be a tuple of texts"),
        (plain(episodes='[Episode("a", ("",), ("b",))]'), r"train\[0\]: turns must hold a text that is not empty"),
        (plain(episodes='[Episode(7, ("a",), ("b",))]'), r"train\[0\]: uid must be a text"),
        (plain(episodes="[]"), r"task guess has no episodes"),
        (plain(score="'good'"), r"the score reward='good' of 0 is no finite number"),
        (plain(score="None"), r"the score reward=None of 0 is no finite number"),
        (plain(score="float('nan')"), r"the score reward=nan of 0 is no finite number"),
        (plain(score="7"), r"the reward of 0 is 7; scale rewards to the range from 0 to 1"),
        (plain(score="-0.1"), r"the reward of 0 is -0.1; scale"),
        (plain(score="{'score': 1}"), r"the score of 0 has no reward"),
        (plain(score="{'reward': 1, 'length': 'long'}"), r"the score length='long' of 0 is no finite number"),
        (plain(score="1 / 0"), r"cannot score 0 at line 4 \(ZeroDivisionError"),
        (plain(more=", respond=score"), r"needs most_turns="),
        (plain(more=", respond=score, most_turns=2"), r"respond gives 1.0 in 0; give the user's next turn"),
        (plain(more=", respond=lambda a: a, most_turns=2"), r"cannot respond in 0 \(TypeError"),
    ],
)
def test_what_is_no_task_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        check_data(config_of(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert "guess" in str(caught.value)


def test_scores_may_be_of_any_type_of_number(tmp_path):
    for score in ("True", "1", "__import__('numpy').float32(1)", "{'reward': True, 'length': 3}"):
        task = build_task(config_of(tmp_path, plain(score=score)).task)
        assert task.score(task.train[0], ["a"])["reward"] == 1.0
    assert not isinstance(task.score(task.train[0], ["a"])["length"], np.generic)


def test_a_bad_score_later_stops_the_run_by_name(tmp_path):
    task = build_task(config_of(tmp_path, plain(score="2.0 if replies == ['x'] else 0.0")).task)
    with pytest.raises(UserError, match=r"the reward of 4 is 2"):
        task.scores([(task.train[0], ["y"]), (task.train[4], ["x"])])


def test_a_file_that_is_not_there_or_has_a_name_of_mth_is_refused(tmp_path):
    for source, message in (
        ("none.py:build", r"task\.source=.*none\.py:build: there is no such file"),
        ("no_such_package.tasks:build", r"there is no module no_such_package; start where it can be imported"),
        ("guess.py", r"task\.source=guess\.py must be like path/to/file\.py:name"),
    ):
        with pytest.raises(UserError, match=message):
            make_config(task={"name": "own", "source": source})
    with pytest.raises(UserError, match=r"task=own needs task\.source="):
        make_config(task={"name": "own"})
    (tmp_path / "arithmetic.py").write_text(TASK)
    with pytest.raises(UserError, match=r"task\.name=arithmetic is a task of mth; give task\.name= another name"):
        make_config(task={"name": "own", "source": f"{tmp_path / 'arithmetic.py'}:build"})


def test_an_own_task_is_evaluated_beside_a_task_of_mth_and_the_other_way_round(tmp_path):
    (tmp_path / "guess.py").write_text(TASK)
    source = f"{tmp_path / 'guess.py'}:build"
    config = make_config(eval={"tasks": ["arithmetic", "other"], "sources": {"other": source}})
    train, evaluated = load_tasks(config)
    assert (train.name, list(evaluated), evaluated["other"].most_turns) == ("arithmetic", ["arithmetic", "other"], 3)
    config = make_config(task={"name": "own", "source": source}, eval={"tasks": ["guess", "arithmetic"]})
    train, evaluated = load_tasks(config)
    assert evaluated["guess"] is train and evaluated["arithmetic"].name == "arithmetic"


def test_an_own_grader_gives_the_reward(tmp_path):
    (tmp_path / "grader.py").write_text(GRADER)
    source = f"{tmp_path / 'grader.py'}:grade"
    task = build_task(TaskConfig("arithmetic", train_rows=8, grader_source=source))
    answer = task.train[0].truth[0]
    assert task.score(task.train[0], [f"it is {answer}"]) == {"reward": 1.0, "task_reward": 0.0, "strict": 0.0}
    assert task.scores([(task.train[0], [f"\\boxed{{{answer}}}"])])[0] == {"reward": 1.0, "task_reward": 1.0, "strict": 1.0}
    for text, message in (
        ("def grade(reply): return 1", "does not take reply, truth"),
        ("def grade(a, b): return 3", "is 3; scale rewards"),
    ):
        (tmp_path / "grader.py").write_text(text)
        with pytest.raises(UserError, match=message):
            build_task(TaskConfig("arithmetic", train_rows=8, grader_source=source))
