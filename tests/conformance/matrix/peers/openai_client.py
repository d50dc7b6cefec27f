"""Asks llama_server.py at ADDRESS by OpenAI's own client and prints what came back, as one JSON object. DIRECT is the server's own address."""

import json
import sys
import time
import urllib.request

import openai

address, direct = sys.argv[1:3]
client = openai.OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0, timeout=30)
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "temperature": 0, "seed": 1}


def whole():
    answer = client.chat.completions.create(max_tokens=24, **ASK)
    return f"{answer.choices[0].message.content!r} {answer.choices[0].finish_reason} {answer.usage.completion_tokens} tokens"


def streamed():
    pieces = list(client.chat.completions.create(max_tokens=24, stream=True, **ASK))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    return f"{text!r} in {len(pieces)} events, {pieces[-1].choices[0].finish_reason}"


def refused():
    try:
        client.chat.completions.create(max_tokens=1, extra_body={"temperature": "hot"}, **ASK)
    except openai.APIStatusError as error:
        return f"{type(error).__name__} {error.status_code}"
    return "no error"


def generates():
    with urllib.request.urlopen(f"http://{direct}/slots", timeout=20) as answer:
        return any(slot["is_processing"] for slot in json.load(answer))


def stops_after():
    """Milliseconds from the moment when the client leaves until the model generates no more: the median of five."""
    took = []
    for _ in range(5):
        asked = client.chat.completions.create(max_tokens=60000, stream=True, extra_body={"ignore_eos": True}, **ASK)
        for _ in zip(range(3), asked):
            pass
        assert generates(), "it is over before anybody has left"
        left = time.monotonic()
        asked.close()
        while generates():
            if time.monotonic() - left > 10:
                return None
        took.append((time.monotonic() - left) * 1000)
    return sorted(took)[2]


cells = {"a chat, answered whole": whole(), "a chat, as an event stream": streamed(), "a request that is refused": refused()}
leaves = {"llama.cpp generates an event stream, and its client leaves": stops_after()}
print(json.dumps({"cells": cells, "leaves": leaves}))
