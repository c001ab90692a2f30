"""DeepSparse in an interpreter of its own: `python deepsparse_worker.py MODEL INPUTS CORES`.

INPUTS is an .npz file. It tells when it is ready, then for each line with a number runs the model so many times and
answers with a line of the seconds that each took. It imports nothing of this project, whose packages it does not have.
"""

import sys
import time

MARK = "worker:"
"""Begins each line of answer; the engine prints lines of its own."""


def main(model: str, inputs: str, cores: str) -> None:
    """Answer until the input ends."""
    import numpy as np
    from deepsparse import Engine

    engine = Engine(model=model, batch_size=1, num_cores=int(cores))
    with np.load(inputs) as arrays:
        feeds = [np.ascontiguousarray(arrays[name]) for name in engine.input_names]
    engine.run(feeds)
    print(MARK, "ready", flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            engine.run(feeds)
            seconds.append(time.perf_counter() - start)
        print(MARK, *seconds, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
