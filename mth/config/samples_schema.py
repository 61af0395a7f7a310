"""The keys of kept samples: prompts and replies that a run leaves in its folder, to be read with `python -m mth.samples`."""

from dataclasses import dataclass

from mth.config.fields import key


@dataclass
class SamplesConfig:
    """Prompts and replies that stay in the run folder."""

    eval: int | None = key(None, "evaluation prompts per task whose replies are kept at every evaluation; null: all", least=0)
    train: int = key(2, "groups whose best and worst reply is kept at every step: those with the widest spread of rewards", least=0)
    max_mib: float = key(64.0, "most MiB of all kept samples; what does not fit is left out", above=0)
