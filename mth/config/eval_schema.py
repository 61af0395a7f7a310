"""The keys of evaluation: for all evaluated tasks, and what differs for one."""

from dataclasses import dataclass

from mth.config.choices import Grader, PromptFormat
from mth.config.fields import key
from mth.config.options import options


@dataclass
class EvalOverride:
    """What differs for one evaluated task."""

    samples: int | None = key(None, "evaluation prompts; null: eval.samples", least=1)
    replies: int | None = key(None, "replies to each evaluation prompt; null: eval.replies", least=1)
    temperature: float | None = key(None, "sampling temperature; null: eval.temperature", least=0)
    max_tokens: int | None = key(None, "most tokens of a reply; null: eval.max_tokens", least=1)
    grader: Grader | None = key(None, "grades answers in a box; null: task.grader")
    prompt_format: PromptFormat | None = key(None, "chat or raw; null: task.prompt_format")
    shots: int | None = key(None, "worked examples before every prompt; null: task.shots", least=0)
    stop: str | None = key(None, "text that ends a reply; null: task.stop")


OF_A_TASK = ("grader", "prompt_format", "shots", "stop")  # what an evaluated task may have other than the trained one, of TaskConfig's keys


@dataclass
class EvalConfig:
    """Evaluation at step 0, every `every` steps, and at the end."""

    every: int = key(10, "steps between evaluations; 0: only first and last", least=0)
    tasks: list[str] | None = key(None, "tasks to evaluate; null: the trained task", group="task")
    paths: dict[str, str | None] = key(dict.fromkeys(options("task")), "data of an evaluated task; null: its own, or that of training")
    sources: dict[str, str | None] = key(
        {}, "evaluated tasks of your own beside the trained one: name -> path/to/file.py:build", later=True
    )
    samples: int = key(256, "evaluation prompts per task", least=1)
    replies: int = key(1, "replies to each evaluation prompt; results are means over them", later=True, least=1)
    temperature: float = key(1.0, "sampling temperature; 0: greedy", least=0)
    max_tokens: int | None = key(None, "most tokens of a reply; null: rollout.max_tokens", least=1)
    per_task: dict[str, EvalOverride] = key(
        {name: EvalOverride() for name in options("task")},
        "what differs for a task, in samples, replies, temperature, max_tokens, grader or its prompts; null: its own recipe",
    )

    def of(self, task: str) -> EvalOverride:
        """How a task is evaluated; what is None of OF_A_TASK is the trained task's."""
        own = self.per_task.get(task, EvalOverride())
        return EvalOverride(
            own.samples or self.samples,
            own.replies or self.replies,
            self.temperature if own.temperature is None else own.temperature,
            own.max_tokens or self.max_tokens,
            *(getattr(own, key) for key in OF_A_TASK),
        )
