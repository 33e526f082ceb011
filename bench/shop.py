"""A server for containers: answers after 20 ms, and ends at once when it is told to, as most programs do."""

import asyncio

PORT = 8080
WORK_S = 0.02
ANSWER = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    await asyncio.sleep(WORK_S)
    writer.write(ANSWER)
    await writer.drain()
    writer.close()


async def main() -> None:
    import os
    import signal

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, os._exit, 0)  # process 1 has no default for it
    server = await asyncio.start_server(answer, None, PORT, backlog=1000)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
