"""python -m mth: the commands."""

COMMANDS = {
    "train": "train a ticket, or with -m launch a grid of runs",
    "grid": "plan, watch, resume and cancel grids; send their journals to MLflow",
    "watch": "the curves of a run in the terminal, while it trains",
    "report": "make the paper's tables and figures from runs, or the page of one run",
    "runs": "find runs by their settings, compare two, remove what is superseded",
    "samples": "read what the model wrote in a run or a grid",
    "evaluate": "pass@1 and reward of a model or of a trained ticket",
    "export": "write a trained ticket as a Hugging Face checkpoint, as a ticket, or as an adapter of PEFT",
    "serve": "run vLLM in a process of its own, for rollout=vllm_server",
    "pretrain": "make the embedded base model again",
}


def main() -> None:
    print("Train a random 1 % of a language model with reinforcement learning.\n")
    for name, meaning in COMMANDS.items():
        print(f"  python -m mth.{name:10}{meaning}")
    print("\nEach command answers --help.")


if __name__ == "__main__":
    main()
