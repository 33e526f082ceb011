"""`python -m tests.fuzz [FRAMES] [SEED]`: the long siege of a living router, 1,000,000 frames unless told otherwise."""

import asyncio
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

from siege import besiege

if __name__ == "__main__":
    given = [int(text) for text in sys.argv[1:]]
    frames, seed = given + [1_000_000, 1][len(given) :]
    report = asyncio.run(besiege(frames, seed))
    print(report)
