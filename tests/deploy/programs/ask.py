"""Asks for many pictures at once and prints what came of each: python ask.py URL COUNT STEPS."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys

import httpx


async def main() -> None:
    url, count, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    async with httpx.AsyncClient(timeout=300) as client:

        async def ask(seed: int) -> tuple[int, str]:
            body = {"prompt": "a handwritten seven", "seed": seed, "num_inference_steps": steps}
            answer = await client.post(f"{url}/v1/images/generations", json=body)
            found = answer.json()
            text = found["data"][0]["b64_json"] if answer.is_success else json.dumps(found)
            return answer.status_code, hashlib.sha256(text.encode()).hexdigest() if answer.is_success else text

        print(json.dumps(await asyncio.gather(*map(ask, range(count)))))


if __name__ == "__main__":
    asyncio.run(main())
