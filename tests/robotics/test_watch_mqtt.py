"""`qwenvl watch` towards an MQTT broker of others."""

import asyncio
import json
import threading

import pytest

from qwenvl_edge import QwenVLError
from qwenvl_edge.robotics.messages import Messages
from qwenvl_edge.robotics.watch.sinks import Mqtt
from qwenvl_edge.robotics.watch.watching import Watch, WatchSettings
from support.moments import free_port, moments
from support.patience import PATIENCE_S, until
from support.scripted import engine

pytest.importorskip("av", reason="the extra camera is not installed")


@pytest.fixture
def broker():
    """An MQTT broker of others in a thread; its port."""
    amqtt = pytest.importorskip("amqtt.broker", reason="amqtt is not installed")
    pytest.importorskip("paho.mqtt.client", reason="the extra mqtt is not installed")
    port, loop, started = free_port(), asyncio.new_event_loop(), threading.Event()
    config = {
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    stop = asyncio.Event()

    async def serve():
        server = amqtt.Broker(config, loop=loop)
        await server.start()
        started.set()
        await stop.wait()
        await server.shutdown()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(PATIENCE_S)
    yield port
    loop.call_soon_threadsafe(stop.set)
    thread.join(PATIENCE_S)


def subscribe(port, topic):
    """A client of its own: what it got, as (topic, text, retained)."""
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    got, ready = [], threading.Event()
    client = Client(CallbackAPIVersion.VERSION2)
    client.on_message = lambda c, data, message: got.append((message.topic, message.payload.decode(), message.retain))
    client.on_subscribe = lambda *_: ready.set()
    client.connect("127.0.0.1", port)
    client.loop_start()
    client.subscribe(topic, qos=1)
    assert ready.wait(PATIENCE_S)
    return client, got


def test_mqtt(broker, tmp_path):
    """Lines arrive at a subscriber, the newest also at a later one, and the status says that the watch has ended."""
    client, got = subscribe(broker, "robot/#")
    sink = Mqtt(f"mqtt://127.0.0.1:{broker}/robot/aisle", pytest.fail)
    qwen, _ = engine(tmp_path, "no<|im_end|>", "yes<|im_end|>")
    settings = WatchSettings("What?", every_s=0.0, count=2)
    Watch(qwen, moments(*range(100), pause_s=0.02), settings, [sink], Messages(print)).run()
    until(lambda: len([1 for topic, _, _ in got if topic == "robot/aisle"]) == 2)
    sink.close()
    until(lambda: ("robot/aisle/status", "offline", False) in got)
    texts = [json.loads(text)["text"] for topic, text, _ in got if topic == "robot/aisle"]
    assert texts == ["no", "yes"] and ("robot/aisle/status", "online", False) in got
    later, late = subscribe(broker, "robot/aisle")
    # The broker of this test also sends what is retained below the topic.
    until(lambda: [1 for topic, _, _ in late if topic == "robot/aisle"])
    kept = {(json.loads(text)["text"], retained) for topic, text, retained in late if topic == "robot/aisle"}
    assert kept == {("yes", True)}  # the broker may send it more than once
    for each in (client, later):
        each.disconnect()
        each.loop_stop()


@pytest.mark.parametrize("url", ["mqtt://host", "http://host/topic", "mqtt:///topic", "mqtt://host/a/#"])
def test_a_bad_broker_address_is_one_sentence(url):
    with pytest.raises(QwenVLError, match="give mqtt://HOST"):
        Mqtt(url, print)


def test_a_broker_that_is_away_does_not_stop_the_watch(tmp_path):
    pytest.importorskip("paho.mqtt.client", reason="the extra mqtt is not installed")
    told = []
    sink = Mqtt(f"mqtt://127.0.0.1:{free_port()}/robot/aisle", told.append)
    until(lambda: told)
    for number in range(100):
        sink.send(str(number))
    with pytest.raises(QwenVLError, match="100 lines wait already"):
        sink.send("one too many")
    sink.close()
    assert "does not answer" in told[0]
