"""A guest at a browser who registers for the event ``school``."""

from __future__ import annotations

import re

import httpx
from running import RunningPortico


class Guest:
    """A browser that registers."""

    def __init__(self, portico: RunningPortico) -> None:
        self.http = httpx.Client(base_url=portico.url, headers={"Origin": portico.url}, timeout=60)
        self.name = self.secret = ""

    def register(self, **more: str) -> str:
        page = self.http.get("/e/school/register").text
        token = re.search(r'name="token" value="([\w-]+)"', page)
        assert token, page
        form = {"token": token[1], "field-name": "Ada", "accept-0": "1"} | more
        answer = self.http.post("/e/school/register", data=form)
        if answer.status_code != 303:
            return answer.text
        card = self.http.get("/e/school/card").text
        self.name = str(re.search(r'<code class="typed">([\w-]+)<', card)[1])  # type: ignore[index]
        self.secret = str(re.search(r'id="secret">([\w-]+)<', card)[1])  # type: ignore[index]
        return self.name
