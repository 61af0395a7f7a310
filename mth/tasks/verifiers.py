"""Environments of the verifiers library: `task=verifiers task.environment=<id>`. They give prompts, the user's turns and rewards.

The library runs an agent in a program behind a server. An environment that only talks needs neither: mth calls its `run` with an agent whose
replies are those that the rollout engine has sampled so far, and takes what `run` says next as the user's next turn. What needs tools, a
container, several agents or a judge is refused.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any

from mth.config.schema import TaskConfig
from mth.foundations.errors import UserError, first_line, require
from mth.tasks.base import EVAL_ROWS, Episode, Task, hold_out
from mth.tasks.scores import checked, probe

SOURCE = None
EXTRA = "pip install 'sparse-rlvr[verifiers]' where vLLM is not installed, and the environment's own package"


class _Asked(BaseException):
    """The user has said something that no reply is known for. No Exception, so that no environment catches it."""


class _Conversation:
    """The agent that an environment's `run` sees: it replies what is given, and raises _Asked at the first turn after that."""

    def __init__(self, vf: Any, task: Any, replies: Sequence[str]) -> None:
        self.vf, self.task, self.replies = vf, task, list(replies)
        self.said: list[str] = []
        seat = vf.AgentConfig(model="policy", runtime=vf.SubprocessConfig())
        about = vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
        self.trace = vf.Trace(task=about, agent=vf.AgentInfo(config=seat))
        if system := system_prompt(task):
            self._add(vf.SystemMessage(content=system))

    async def turn(self, message: str | None = None) -> Any:
        """What `Interaction.turn` of the library does: one user turn and the reply to it."""
        text = opening_prompt(self.task) if message is None else message
        self.said.append(text)
        if len(self.said) > len(self.replies):
            raise _Asked
        reply = self.vf.AssistantMessage(content=self.replies[len(self.said) - 1])
        self._add(self.vf.UserMessage(content=text))
        self._add(reply, sampled=True)
        return self.vf.Segment(messages=[reply])

    async def run(self, task: Any) -> Any:
        """What `Agent.run` does for a task with a prompt."""
        await self.turn()
        return self.trace

    @asynccontextmanager
    async def interaction(self, task: Any) -> "AsyncIterator[_Conversation]":
        """What `Agent.interaction` does."""
        yield self

    def _add(self, message: Any, sampled: bool = False) -> None:
        parent = len(self.trace.nodes) - 1
        self.trace.nodes.append(self.vf.MessageNode(parent=parent if parent >= 0 else None, message=message, sampled=sampled))


class _Agents:
    """The one agent of an environment, whatever it is called."""

    def __init__(self, agent: _Conversation) -> None:
        self._agent = agent

    def __getattr__(self, name: str) -> _Conversation:
        return self._agent


def system_prompt(task: Any) -> str:
    """The system prompt of a task of the library, which may be the first of its messages."""
    found = [message for message in _messages(task) if message.role == "system"]
    return str(task.data.system_prompt or (found[0].content if found else "") or "")


def opening_prompt(task: Any) -> str:
    """The first user turn of a task that has a prompt."""
    return "\n\n".join(str(message.content) for message in _messages(task) if message.role == "user")


def _messages(task: Any) -> list[Any]:
    from verifiers.v1.types import UserMessage

    prompt = task.data.prompt
    return [UserMessage(content=prompt)] if isinstance(prompt, str) else list(prompt or [])


class _Environment:
    """An environment of the library, asked for the user's turns and for rewards. where: key and id, for messages."""

    def __init__(self, config: TaskConfig) -> None:
        self.where = f"task.environment={config.environment}"
        self.config = config
        try:
            import verifiers.v1 as vf
            from verifiers.v1.graph import MessageNode
            from verifiers.v1.trace import AgentInfo
        except ImportError as error:
            raise UserError(f"{self.where}: the library verifiers 0.4 or later is not installed ({first_line(error)}): {EXTRA}") from error
        self.vf = _Names(vf, MessageNode=MessageNode, AgentInfo=AgentInfo)
        self.environment = self._load()

    def _load(self) -> Any:
        from verifiers.v1.utils.generic import concrete_type
        from verifiers.v1.utils.loaders import environment_class, taskset_class

        name = str(self.config.environment)
        try:
            taskset = concrete_type(taskset_class(name), self.vf.TasksetConfig) or self.vf.TasksetConfig
            kind = environment_class(name)
            settings = concrete_type(kind, self.vf.EnvConfig, origin=self.vf.Env) or self.vf.EnvConfig
            self._refuse_kind(kind)
            return kind(settings(taskset=taskset(id=name, **self.config.options)))
        except UserError:
            raise
        except ModuleNotFoundError as error:
            raise UserError(f"{self.where}: there is no such environment here ({first_line(error, 160)}): {EXTRA}") from error
        except Exception as error:  # configurations are validated in many ways
            raise UserError(f"{self.where}: cannot be made with these task.options ({said(error)}); correct them") from error

    def _refuse_kind(self, kind: Any) -> None:
        one = issubclass(kind, self.vf.SingleAgentEnv)
        require(
            one and kind.finalize is self.vf.Env.finalize,
            f"{self.where}: has several agents or judges them together, which mth does not run",
        )

    def tasks(self, count: int) -> list[Any]:
        """The first `count` tasks. Raises UserError if they cannot be loaded, or if one needs more than a conversation."""
        taskset = self.environment.taskset
        try:
            shared = taskset.toolsets(taskset.config)
            found = list(islice(taskset, count))
        except Exception as error:
            raise UserError(f"{self.where}: its data cannot be loaded ({said(error)}); does it need a network?") from error
        require(bool(found), f"{self.where}: has no tasks")
        for task in found[:1]:
            require(not shared and not type(task).toolsets(taskset.config.task), f"{self.where}: needs tools, which mth does not run")
            lifecycle = all(getattr(type(task), hook) is getattr(self.vf.Task, hook) for hook in ("setup", "finalize"))
            boxed = type(task).NEEDS_CONTAINER or task.data.image or not lifecycle or any(map(_wants_runtime, task.hooks("reward")))
            require(not boxed, f"{self.where}: needs a container or another runtime, which mth does not start")
            require(
                not task.plugged_judges(),
                f"{self.where}: its rewards come from a judge over a network; give an environment that scores itself",
            )
            require(bool(task.hooks("reward")), f"{self.where}: gives no reward")
        return found

    def next_turn(self, task: Any, replies: Sequence[str]) -> str | None:
        """What the user says after these replies; None at the end."""
        conversation, more = self._play(task, replies)
        return conversation.said[-1] if more else None

    def score(self, task: Any, episode: Episode, replies: Sequence[str]) -> dict[str, float]:
        """The library's reward and metrics of a conversation."""
        conversation, _ = self._play(task, replies)
        trace = conversation.trace
        trace.is_completed = trace.ok = True
        self._await(task.score(trace), f"cannot score {episode.uid}")
        metrics = {name: value for name, value in trace.metrics.items() if value is not None}
        return checked(metrics | {"reward": trace.reward}, episode, self.where)

    def _play(self, task: Any, replies: Sequence[str]) -> tuple[_Conversation, bool]:
        """The conversation with these replies, and whether the user has said something more."""
        conversation = _Conversation(self.vf, task, replies)
        try:
            self._await(self.environment.run(task, _Agents(conversation)), "fails")
        except _Asked:
            return conversation, True
        return conversation, False

    def _await(self, work: Coroutine[Any, Any, Any], what: str) -> Any:
        try:
            return asyncio.run(work)
        except Exception as error:
            raise UserError(f"{self.where}: {what} ({said(error)}); does it need tools or a network?") from error


class _Names:
    """A module with further names."""

    def __init__(self, module: Any, **more: Any) -> None:
        self._module = module
        vars(self).update(more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _wants_runtime(function: Any) -> bool:
    parameter = inspect.signature(function).parameters.get("runtime")
    return parameter is not None and parameter.default is inspect.Parameter.empty


def said(error: BaseException) -> str:
    """The kind of an error and its message in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}".removesuffix(": ")


def build(config: TaskConfig) -> Task:
    """The environment's first `task.train_rows` tasks and others for evaluation; conversations end at `task.max_turns`."""
    environment = _Environment(config)
    held = min(EVAL_ROWS // 2, max(1, config.train_rows // 4)) if config.holdout else 0
    tasks = {str(index): task for index, task in enumerate(environment.tasks(config.train_rows + held))}
    episodes = []
    for uid, task in tasks.items():
        text = environment.next_turn(task, ())
        require(bool(text), f"{environment.where}: its task {uid} begins without a user turn, which mth does not play")
        system = system_prompt(task) if config.system is None else config.system
        episodes.append(Episode(uid, (str(text),), (str(getattr(task.data, "answer", "") or ""),), system))
    scripted = type(environment.environment).run is not environment.vf.SingleAgentEnv.run
    task = Task(
        config.name,
        *hold_out(episodes, config, held or None),
        lambda episode, replies: environment.score(tasks[episode.uid], episode, replies),
        respond=(lambda episode, replies: environment.next_turn(tasks[episode.uid], replies)) if scripted else None,
        most_turns=config.max_turns if scripted else 0,
    )
    probe(task)
    return task
