"""Random sparse tickets for reinforcement learning with verifiable rewards. `python -m mth` lists the commands."""
