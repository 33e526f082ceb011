from tsbus import Worker

worker = Worker("greeter")


@worker.command("hello")
async def hello(call):
    return {"greeting": f"hello {call.json()['name']} from {call.node}"}


worker.run()
