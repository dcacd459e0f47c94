"""torchrun, with one line where it would print tracebacks of its own.

    python -m leveret.launch.agent --standalone --nproc-per-node=2 -m leveret run recipe.yaml

takes torchrun's options and does what torchrun does; the processes it starts tell their errors themselves. It ends with
the code of the first process that failed with one (1 if all were killed), and with 128 + N when signal N ended it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from leveret.ranks import AGENT


def main(arguments: Sequence[str]) -> int:
    """Be torchrun; the exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    os.environ[AGENT] = str(os.getpid())
    try:
        run(parse_args(list(arguments)))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        ends = [f"process {rank} with {said(failure.exitcode)}" for rank, failure in sorted(error.failures.items())]
        print(f"ended: {', '.join(ends)}", file=sys.stderr)
        return next((failure.exitcode for _, failure in sorted(error.failures.items()) if failure.exitcode > 0), 1)
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def said(status: int) -> str:
    """How a process ended, in words."""
    return f"code {status}" if status >= 0 else signal.Signals(-status).name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
