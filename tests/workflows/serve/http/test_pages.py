"""The pages without a browser: what the templates make, and the policy under which it is shown."""

from __future__ import annotations

import json
import re
from pathlib import Path

from workflows.options.guidance import KINDS
from workflows.options.samplers import SAMPLERS
from workflows.serve.http import pages
from workflows.serve.http.pages import content_policy, prompt_page, reference_page

PAGE = prompt_page()
SOURCE = (Path(pages.__file__).parent / "page.html").read_text()


def test_the_page_asks_no_other_site() -> None:
    assert re.findall(r"https?://", PAGE) == []
    assert re.findall(r"\bsrc=|<link (?!rel=\"icon\")|@import", PAGE) == []


def test_the_policy_allows_the_page_s_own_script_only() -> None:
    policy = content_policy(PAGE)
    assert policy != content_policy(PAGE.replace("at(", "at ("))
    assert "unsafe-inline" not in policy


def test_style_and_script_go_through_the_template_unread() -> None:
    """So braces in them cannot clash with Jinja2's; nothing of the template is left in the page."""
    for kind in ("style", "script"):
        (text,) = re.findall(rf"<{kind}>(.*?)</{kind}>", SOURCE, re.DOTALL)
        assert f"{{% raw -%}}\n<{kind}>{text}</{kind}>\n{{% endraw %}}" in SOURCE
        assert f"<{kind}>{text}</{kind}>" in PAGE
    assert not re.search(r"{[%#{]", PAGE)


def test_the_page_holds_the_tables_of_choices_as_data() -> None:
    (text,) = re.findall(r'<script type="application/json" id="tables">(.*?)</script>', PAGE)
    tables = json.loads(text)
    assert tables["guidance"] in tables["kinds"]
    assert {name: tuple(kind["reads"]) for name, kind in tables["kinds"].items()} == {
        kind.name: kind.reads for kind in KINDS.values()
    }
    for sampler in SAMPLERS.values():
        assert f'<option value="{sampler.name}">{sampler.title}</option>' in PAGE


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
