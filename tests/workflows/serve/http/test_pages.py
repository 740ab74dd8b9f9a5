"""The pages without a browser: what the templates make, and the policy under which it is shown."""

from __future__ import annotations

import json
import re

from workflows.options.guidance import KINDS
from workflows.serve.http.pages import content_policy, prompt_page, reference_page

PAGE = prompt_page()


def test_the_page_asks_no_other_site() -> None:
    assert re.findall(r"https?://", PAGE) == []
    assert re.findall(r"\bsrc=|<link (?!rel=\"icon\")|@import", PAGE) == []


def test_the_policy_allows_the_page_s_own_script_only() -> None:
    policy = content_policy(PAGE)
    assert policy != content_policy(PAGE.replace("at(", "at ("))
    assert "unsafe-inline" not in policy


def test_nothing_of_the_template_is_left_and_the_tables_are_in_the_script() -> None:
    assert not re.search(r"{[%#{]", PAGE)
    (script,) = re.findall(r"<script>(.*?)</script>", PAGE, re.DOTALL)
    (kinds,) = re.findall(r"^const KINDS = (.*);$", script, re.MULTILINE)
    assert {name: kind["title"] for name, kind in json.loads(kinds).items()} == {
        kind.name: kind.title for kind in KINDS.values()
    }


def test_the_reference_escapes_what_the_document_says() -> None:
    field = {"type": "<i>", "description": 'a < b & "c"'}
    route = {
        "requestBody": {"content": {"json": {"schema": {"properties": {"<name>": field}}}}},
        "responses": {"200": {"description": "<script>alert(1)</script>"}},
    }
    document = {"info": {"title": "<b>"}, "components": {"schemas": {}}, "paths": {"/<path>": {"post": route}}}
    page = reference_page(document)
    assert "<tr><td><code>&lt;name&gt;</code></td><td>&lt;i&gt;</td><td>a &lt; b &amp; &#34;c&#34;</td></tr>" in page
    assert "<td>&lt;script&gt;alert(1)&lt;/script&gt;</td>" in page
    assert "<title>&lt;b&gt;: reference</title>" in page and "POST /&lt;path&gt;" in page
    assert "script-src 'none'" in content_policy(page)
