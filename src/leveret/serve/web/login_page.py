"""The form that asks for the API key, in the browser's language, without a script."""

from __future__ import annotations

import html
from collections.abc import Mapping

from leveret.serve.web.language import Language, preferred
from leveret.serve.web.style import STYLE

_WORDS: dict[Language, tuple[str, str, str, str]] = {
    "en": ("This server wants its API key", "API key", "Enter", "That is not the key."),
    "zh": ("这台服务器需要 API 密钥", "API 密钥", "进入", "密钥不对。"),
}


def login_page(headers: Mapping[str, str], *, next_path: str, wrong: bool = False) -> str:
    """The page; it leads on to `next_path`."""
    language = preferred(headers.get("accept-language", ""))
    title, label, button, refused = _WORDS[language]
    note = f'<p role="alert">{refused}</p>' if wrong else ""
    return (
        f'<!doctype html><html lang="{language}"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>Leveret</title><style>{STYLE}</style></head>'
        f'<body class="door"><form method="post" action="/login"><h1>{title}</h1>{note}'
        f'<input type="hidden" name="next" value="{html.escape(next_path)}"><label>{label}'
        '<input type="password" name="key" autocomplete="current-password" required autofocus></label>'
        f"<button>{button}</button></form></body></html>\n"
    )
