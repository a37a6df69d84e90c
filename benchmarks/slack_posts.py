"""Time one message to Slack and its answer, by our client and by slack_sdk's own.

    python -m benchmarks.slack_posts [--posts 735]

Prints milliseconds of wall and of processor time for each post. Slack is played by a small server in a second process
on the same machine, which sends the head and the body of an answer one after the other.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from slack_sdk import WebClient

from benchmarks.notify import start_services
from ci_pipeline.publish.slack import SlackClient

BLOCKS = [{"type": "section", "text": {"type": "mrkdwn", "text": "*bert* " + "x" * 600}}] * 2


def measure(name: str, post: Callable[[], object], posts: int) -> None:
    post()  # its imports and its connection are not what is measured
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(posts):
        post()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{name:10s} {wall / posts * 1000:6.2f} ms wall, {cpu / posts * 1000:6.2f} ms of processor time each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--posts", type=int, default=735)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        routes = Path(folder, "github", "routes.json")
        routes.parent.mkdir()
        routes.write_text("[]")
        server, address = start_services(Path(folder))
        url = f"{address}/api/"
        ours, plain = SlackClient("token", url), WebClient("token", base_url=url)
        measure("ours", lambda: ours.post("#ci", "text", BLOCKS, "1.2"), options.posts)
        measure("slack_sdk", lambda: plain.chat_postMessage(channel="#ci", text="text", blocks=BLOCKS), options.posts)
        server.communicate()


if __name__ == "__main__":
    main()
