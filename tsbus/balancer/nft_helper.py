"""Nft helper: a program that does what nft does, one command after the other, without a new process for each.

nft.py starts it as a file, with nothing but the standard library: a fork of nft takes 6 to 17 ms, a command here less
than 1. It is a process of its own since nft's library ends the process that meets what it does not understand.

In: length (4 bytes) and commands, in the words of `nft -f`. Out: length, and what is wrong with them; nothing when all
is done. It ends with its input.
"""

import ctypes
import sys
from typing import IO

LIBRARY = "libnftables.so.1"


def main() -> None:
    """Carry out commands until the input ends."""
    nft = ctypes.CDLL(LIBRARY)
    nft.nft_ctx_new.restype = nft.nft_ctx_get_error_buffer.restype = ctypes.c_void_p
    context = ctypes.c_void_p(nft.nft_ctx_new(0))
    nft.nft_ctx_buffer_output(context)
    nft.nft_ctx_buffer_error(context)
    while (text := read(sys.stdin.buffer)) is not None:
        failed = nft.nft_run_cmd_from_buffer(context, ctypes.c_char_p(text))
        said = ctypes.string_at(nft.nft_ctx_get_error_buffer(context))
        write(sys.stdout.buffer, (said or b"it failed without a word") if failed else b"")


def read(stream: IO[bytes]) -> bytes | None:
    """Return the next text, None at the end."""
    size = stream.read(4)
    return stream.read(int.from_bytes(size)) if len(size) == 4 else None


def write(stream: IO[bytes], text: bytes) -> None:
    """Send a text."""
    stream.write(len(text).to_bytes(4) + text)
    stream.flush()


if __name__ == "__main__":
    main()
