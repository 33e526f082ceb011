"""Early: the main of a router, whose first statement holds SIGHUP back: what it imports takes long beside a signal."""

import signal


def main() -> int:
    """Run the router (loop.py), which lets SIGHUP in when it can reload."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})

    from tsbus.loop import main as run

    return run()
