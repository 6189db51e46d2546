"""A second opinion: aiocoap (from PyPI) as the device. Usage: python aiocoap_check.py [coap://127.0.0.1:5683]

Needs a running listener that takes bodies of 1 MiB; leaves two retained topics behind. Exits 0 when everything agrees.
"""

import asyncio
import sys

import aiocoap
from aiocoap import Code, Context, Message

BASE = sys.argv[1] if len(sys.argv) > 1 else "coap://127.0.0.1:5683"
LARGE = bytes(i % 251 for i in range(50_000))


def check(what, found, expected):
    print(f"{what}: {found}")
    if found != expected:
        sys.exit(f"{what}: expected {expected}")


async def main():
    context = await Context.create_client_context()

    async def ask(code, path, payload=b"", **options):
        message = Message(code=code, uri=BASE + path, payload=payload, **options)
        return await asyncio.wait_for(context.request(message).response, 20)

    check("POST", (await ask(Code.POST, "/check/a", b"21.5")).code, Code.CHANGED)
    non = await ask(Code.POST, "/check/a", b"x", transport_tuning=aiocoap.Unreliable)
    check("POST, not confirmable", (non.code, non.mtype), (Code.CHANGED, aiocoap.NON))
    check("PUT retained", (await ask(Code.PUT, "/check/kept?retain", b"{}", content_format=50)).code, Code.CHANGED)
    kept = await ask(Code.GET, "/check/kept")
    check("GET", (kept.code, kept.payload, int(kept.opt.content_format)), (Code.CONTENT, b"{}", 50))
    check("GET nothing", (await ask(Code.GET, "/check/none")).code, Code.NOT_FOUND)
    check("DELETE", (await ask(Code.DELETE, "/check/a")).code, Code.METHOD_NOT_ALLOWED)
    check("slash in a segment", (await ask(Code.POST, "/a%2Fb", b"x")).code, Code.BAD_REQUEST)
    check("listed", b"</check/kept>" in (await ask(Code.GET, "/.well-known/core")).payload, True)
    check("PUT 50 kB", (await ask(Code.PUT, "/check/large?retain", LARGE, content_format=42)).code, Code.CHANGED)
    check("GET 50 kB", (await ask(Code.GET, "/check/large")).payload == LARGE, True)
    check("POST 2 MB", (await ask(Code.POST, "/check/large", bytes(2_000_000))).code, Code.REQUEST_ENTITY_TOO_LARGE)

    request = context.request(Message(code=Code.GET, uri=BASE + "/check/watched", observe=0))
    check("observe", (await asyncio.wait_for(request.response, 20)).code, Code.CONTENT)
    told = asyncio.Queue()

    async def watch():
        async for notification in request.observation:
            await told.put(notification.payload)

    watching = asyncio.create_task(watch())
    for payload in (b"1", b"2", LARGE[:3_000]):
        await ask(Code.POST, "/check/watched", payload)
        check(f"told of {len(payload)} bytes", await asyncio.wait_for(told.get(), 20) == payload, True)
    request.observation.cancel()
    watching.cancel()
    await context.shutdown()


asyncio.run(main())
