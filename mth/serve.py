"""python -m mth.serve: runs vLLM in a process of its own, for training with rollout=vllm_server.

Usage
  python -m mth.serve [--host 127.0.0.1] [--port 8711]
  python -m mth.train rollout=vllm_server rollout.url=http://127.0.0.1:8711 ...

The server starts without a model. The run sends the model's configuration and its weights once, and the values of its ticket after every
step. The server handles one run at a time, and stays when the run ends. --port 0 takes a free port and prints it.

For a run on another machine, set --host, and set the environment variable MTH_ENGINE_TOKEN to the same secret on both machines. The
connection is not encrypted.
"""

import argparse
import os
import sys

from mth.config.cli import one_line_errors


@one_line_errors
def main(arguments: list[str]) -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m mth.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8711, help="port to listen on, 0 for a free one (default: 8711)")
    options = parser.parse_args(arguments)
    from mth.foundations.secrets import TOKEN_VARIABLE
    from mth.rollout.vllm.core import LocalCore, prepare_vllm
    from mth.rollout.vllm.server import build_server

    server = build_server(LocalCore(), options.host, options.port, os.environ.get(TOKEN_VARIABLE))
    prepare_vllm()
    print(f"ready on http://{options.host}:{server.server_port}", flush=True)
    try:
        server.run()
    except KeyboardInterrupt:
        print("stopped")
    finally:
        server.server_close()


if __name__ == "__main__":
    main(sys.argv[1:])
