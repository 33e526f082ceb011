"""Mosquitto: Debian's MQTT broker joined by bridges, with paho-mqtt clients at QoS 0."""

from __future__ import annotations

import itertools
import threading
import time
from importlib.metadata import version
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from bench.contestant import Contestant, Tally, Tree
from bench.harness import Fleet, free_ports, output

TOPIC = "bench/event"
CONFIG = """
user root
listener {port} 127.0.0.1
allow_anonymous true
set_tcp_nodelay true
max_queued_messages 0
log_type error
"""
BRIDGE = """
connection node{router}
address 127.0.0.1:{parent}
topic bench/# both 0
notifications false
restart_timeout 1
"""


class Mosquitto(Contestant):
    name = "mosquitto"
    can_ask = False

    def version(self) -> str:
        return f"{output('mosquitto', '-h').splitlines()[0]}, paho-mqtt {version('paho-mqtt')}, QoS 0"

    def start(self, fleet: Fleet, tree: Tree) -> None:
        self.ports = free_ports(len(tree))
        for router, parent in enumerate(tree):
            text = CONFIG.format(port=self.ports[router])
            if parent is not None:
                text += BRIDGE.format(router=router, parent=self.ports[parent])
            config = fleet.file(f"mosquitto{router}.conf", text)
            fleet.start(f"router {router + 1}", ["mosquitto", "-c", str(config)], [self.ports[router]])

    def endpoint(self, router: int, kind: str) -> str:
        return str(self.ports[router])


def _connect(endpoint: str) -> Client:
    client = Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", int(endpoint))
    client.loop_start()
    return client


class Publisher:
    def __init__(self, endpoint: str, connections: int) -> None:
        self._clients = [_connect(endpoint) for _ in range(connections)]

    def send(self, count: int, body: bytes) -> None:
        last = {}
        for number, client in itertools.islice(itertools.cycle(enumerate(self._clients)), count):
            last[number] = client.publish(TOPIC, body)
        for info in last.values():
            info.wait_for_publish(60)


class Subscriber:
    def __init__(self, endpoint: str, connections: int) -> None:
        self._tally = Tally(connections)
        self._clients = [self._subscribed(_connect(endpoint), number) for number in range(connections)]

    def _subscribed(self, client: Client, number: int) -> Client:
        add, granted = self._tally.add, threading.Event()

        def on_message(_client: Client, _data: Any, message: MQTTMessage) -> None:
            add(number, len(message.payload))

        client.on_message = on_message
        client.on_subscribe = lambda *_: granted.set()
        client.subscribe(TOPIC)
        granted.wait(10)
        return client

    def receive(self, each: int, size: int, silence_s: float) -> int:
        self._tally.want(each, size)
        while not self._tally.settled(size, silence_s):
            time.sleep(0.002)
        return self._tally.received(each, size)
