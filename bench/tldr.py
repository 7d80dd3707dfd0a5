"""Have summaries become better? The demo's measurements and bars for the task `tldr`, and its zero-shot baseline.

    python bench/tldr.py [--quick] [--seeds 0,1,2] [--parallel N] [--threads N]

As `bench/demo.py`, whose options and rows these are; two rows more say how often policy and untouched model beat
the continuation of "TL;DR:".
"""

from demo import main

if __name__ == "__main__":
    main("tldr", "tldr")
